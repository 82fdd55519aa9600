"""What `callosum-site check` takes for a table that is far wider than what a study uses of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, COLUMNS, USED = 5_000, 10_000, 50
# a shell's child knows its own peak; the parent's counter is of all children
MEASURED = (
    "import resource, subprocess, sys\n"
    "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
)


def table() -> str:
    """Seconds and peak memory of one check."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder)
        size = (folder / "t.tsv").stat().st_size
        words = ["callosum-site", "check", "--study", "study.toml", "--site", "site.toml"]
        program = str(Path(sys.executable).with_name(words[0]))
        began = time.monotonic()
        told = subprocess.run(
            [sys.executable, "-c", MEASURED, program, *words[1:]],
            cwd=folder, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        seconds = time.monotonic() - began
    return "\n".join(
        [
            f"{ROWS:,} rows of {COLUMNS:,} columns ({size / 1e6:.0f} MB), of which {USED} are used",
            "",
            "| seconds | peak MB |",
            "|---|---|",
            f"| {seconds:.1f} | {int(told) / 1000:.0f} |",
        ]
    )


def _write(folder: Path) -> None:
    names = [f"c{number}" for number in range(COLUMNS - 3)]
    with (folder / "t.tsv").open("w") as file:
        file.write("\t".join(["participant_id", "age", "sex", *names]) + "\n")
        for row in range(ROWS):
            cells = [f"{(row * column) % 997}.25" for column in range(len(names))]
            file.write(
                "\t".join([f"sub-{row:05d}", str(20 + row % 60), "FM"[row % 2], *cells]) + "\n"
            )
    used = ", ".join(f'"c{number * (len(names) // USED)}"' for number in range(USED))
    (folder / "study.toml").write_text(
        f'name = "wide"\n[data]\nkind = "features"\ncolumns = [{used}]\n'
        '[targets.age]\nkind = "regression"\nunit = "years"\nlow = 0\nhigh = 120\n'
        '[targets.sex]\nkind = "binary"\nclasses = ["female", "male"]\n'
        '[backbone]\nname = "linear"\n[objective]\nname = "multitask"\n[sites]\ntrain = ["here"]\n'
    )
    (folder / "site.toml").write_text(
        'name = "here"\nrole = "train"\n[data]\nkind = "features"\ntable = "t.tsv"\n'
        '[targets.age]\ncolumn = "age"\n[targets.sex]\ncolumn = "sex"\n'
        'codes = {F = "female", M = "male"}\n'
    )
