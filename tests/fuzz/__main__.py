"""`make fuzz`: unsound inputs at every border; whatever is no error of ours is a finding.

The same seed makes the same inputs: `make fuzz FUZZ="--border npy --at 4711"` repeats one of them.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from logging import CRITICAL, getLogger

from common.runtime.command import fix_allocator
from tests.fuzz.border import Border, Finding, _peak, tried

_PIECE_S = 1.0  # of work at once, so that progress is seen
_STUCK_S = 120  # in C, where nothing else ends it


def all_borders() -> dict[str, Border]:
    """Every border by name."""
    from tests.fuzz import files, images, texts, wire

    for name in ("callosum", "nibabel.global", "PIL"):  # they say what is wrong with each file
        getLogger(name).setLevel(CRITICAL)
    warnings.simplefilter("ignore")
    return {b.name: b for room in (wire, files, images, texts) for b in room.borders()}


def counts(borders: dict[str, Border], total: int) -> dict[str, int]:
    """How many inputs each border gets."""
    shares = sum(border.share for border in borders.values())
    return {name: max(1, round(total * b.share / shares)) for name, b in borders.items()}


def worked(piece: tuple[str, int, int, int]) -> tuple[str, int, float, list[Finding], int]:
    """Some inputs of one border, in a process of its own."""
    name, seed, start, stop = piece
    border = _BORDERS[name]
    faulthandler.dump_traceback_later(_STUCK_S, exit=True)
    began = time.process_time()
    found = [f for number in range(start, stop) if (f := tried(border, seed, number))]
    faulthandler.cancel_dump_traceback_later()
    return name, stop - start, time.process_time() - began, found, _peak()


_BORDERS: dict[str, Border] = {}


def pieces(wanted: dict[str, int], seed: int, size: int) -> Iterator[tuple[str, int, int, int]]:
    """Every border in turn, so that each is met in the first minute."""
    for start in range(0, max(wanted.values()), size):
        for name, count in wanted.items():
            if start < count:
                yield name, seed, start, min(start + size, count)


def main() -> int:
    """Fuzz, and say what was found."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs, over all borders")
    parser.add_argument("--border", action="append", help="only this one; may be repeated")
    parser.add_argument("--at", type=int, help="only the input of this number, with its traceback")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    _BORDERS.update(all_borders())
    chosen = {name: _BORDERS[name] for name in asked.border or _BORDERS}
    if asked.at is not None:
        return _one(next(iter(chosen.values())), asked.seed, asked.at)
    wanted = counts(chosen, asked.count)
    began, told = time.monotonic(), 0.0
    done, spent, findings, peak = (
        Counter[str](),
        Counter[str](),
        dict[tuple[str, ...], Finding](),
        0,
    )
    often = Counter[tuple[str, ...]]()
    with multiprocessing.get_context("fork").Pool(asked.processes) as pool:
        work = pieces(wanted, asked.seed, max(20, min(500, asked.count // 200)))
        for name, number, seconds, found, most in pool.imap_unordered(worked, work):
            done[name] += number
            spent[name] += seconds
            peak = max(peak, most)
            for each in found:
                key = (each.border, each.what.partition(":")[0], each.where)
                often[key] += 1
                if key not in findings:
                    findings[key] = each
                    print(f"\n{each.border} --at {each.number}: {each.what}  ({each.where})")
            if time.monotonic() - told > 10:
                told = time.monotonic()
                rate = done.total() / (told - began)
                print(f"{done.total():,} of {sum(wanted.values()):,}, {rate:,.0f} a second, "
                      f"{often.total()} findings", flush=True)  # fmt: skip
    seconds = time.monotonic() - began
    for name in wanted:
        print(
            f"{name:10} {done[name]:9,} inputs {done[name] / max(spent[name], 1e-9):9,.0f} a second"
        )
    print(f"seed {asked.seed}: {done.total():,} inputs in {seconds:.0f} s, "
          f"{done.total() / seconds:,.0f} a second, peak {peak / 1e6:.0f} MB, "
          f"{often.total()} findings at {len(findings)} places")  # fmt: skip
    for key, each in findings.items():
        print(
            f"  {often[key]:6} x --border {each.border} --at {each.number}: {each.what} ({each.where})"
        )
    return 1 if findings else 0


def _one(border: Border, seed: int, number: int) -> int:
    from random import Random

    value = border.make(Random(f"{seed}/{border.name}/{number}"))
    print(repr(value)[:2000])
    border.read(value)
    return 0


if __name__ == "__main__":
    fix_allocator([sys.executable, "-m", "tests.fuzz", *sys.argv[1:]])
    sys.exit(main())
