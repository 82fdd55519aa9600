"""`make chaos`: kills, signals, full and closed disks, flipped bits; the same bits or one error.

Moments and places come from the seed: `make chaos CHAOS="--seed 3 --only flips"`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from common.runtime.command import fix_allocator
from tests.chaos import hurts, sites
from tests.chaos.deployment import deployment_kills
from tests.chaos.trial import Ground, ground

FULL = {"kills": 200, "large-files": 20, "disks": 24, "flips": 400, "site-flips": 120,
        "deployment": 20}  # fmt: skip


def trials(what: str, made: Ground, folder: Path, random: Random, count: int) -> Iterator[str]:
    """The trials of one kind; each says what is wrong, or nothing."""
    if what == "disks" and not hurts.can_mount():
        print("disks: left out; this machine lets nobody mount a tmpfs of his own")
        return iter(())
    kinds = {
        "kills": lambda: hurts.kills(made, random, count),
        "large-files": lambda: hurts.large_files(made, random, count),
        "disks": lambda: hurts.full_disks(made, random, count),
        "flips": lambda: hurts.flips(made, random, count),
        "site-flips": lambda: sites.site_flips(folder, random, count),
        "deployment": lambda: deployment_kills(folder, random, count),
    }
    return kinds[what]()


def main() -> int:
    """Hurt, and say what did not heal."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(FULL), help="may be repeated")
    parser.add_argument("--share", type=float, default=1.0, help="of the number of trials")
    parser.add_argument("--quick", action="store_true", help="all but the deployment")
    asked = parser.parse_args()
    chosen = asked.only or [what for what in FULL if what != "deployment" or not asked.quick]
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="callosum-chaos-") as name:
        folder = Path(name)
        with ground(folder / "runs") as made:
            for what in chosen:
                count = max(1, round(FULL[what] * asked.share))
                random, began, told, done = Random(f"{asked.seed}/{what}"), time.monotonic(), 0.0, 0
                for fault in trials(what, made, folder, random, count):
                    done += 1
                    if fault:
                        faults.append(f"{what}: {fault}")
                        print(faults[-1], flush=True)
                    if time.monotonic() - told > 10:
                        told = time.monotonic()
                        print(f"{what}: {done} of {count}", flush=True)
                print(f"{what}: {done} trials in {time.monotonic() - began:.0f} s", flush=True)
    print(f"seed {asked.seed}: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    fix_allocator([sys.executable, "-m", "tests.chaos", *sys.argv[1:]])  # or every child would
    sys.exit(main())
