"""Bits that flip in what an agent keeps: its books, its reports, its arrays, its prepared data."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from common.errors import SENTENCES, CallosumError
from tests.chaos.hurts import Fault
from tests.client.service.killed_agent import Hospital
from tests.conftest import write_federation

_CHANGES: Final = {
    "sites": {"train": ["alpha"]},
    "objective.targets": ["age"],
    "finetuning": [
        {"name": "dementia", "target": "diagnosis", "methods": ["pretrained/full"], "epochs": 1,
         "learning_rates": [0.01]}
    ],
}  # fmt: skip


def site_flips(folder: Path, random: Random, count: int) -> Iterator[Fault]:
    """After each flip the same orders again: the same answers, or a code, or one clear error."""
    made = write_federation(folder / "site", _CHANGES)
    made.agent("alpha")  # prepared
    Hospital(folder / "site", folder / "asked", 2).ask()
    wanted = (folder / "asked" / "handed").read_text().splitlines()
    state = Path("sites/alpha/.callosum")
    files = [
        path.relative_to(folder / "asked")
        for path in sorted((folder / "asked" / state).rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    for number in range(count):
        name = files[number % len(files)]
        hospital = Hospital(folder / "asked", folder / "hurt", 2)
        data = bytearray((hospital.work / name).read_bytes())
        place, bit = random.randrange(len(data)), random.randrange(8)
        data[place] ^= 1 << bit
        (hospital.work / name).write_bytes(data)
        (hospital.work / "handed").unlink()
        code, said = _asked(hospital)
        fault = _fault(hospital, wanted) if code == 0 else "" if code > 1 else said
        yield f"site: bit {bit} of byte {place} of {name}: {fault}" if fault else ""
    shutil.rmtree(folder / "hurt", ignore_errors=True)


def _fault(hospital: Hospital, wanted: list[str]) -> Fault:
    for line, sound in zip(hospital.handed(), wanted, strict=True):
        if line != sound and line.split()[1] not in SENTENCES:
            return f"another answer left: {line}"
    return ""


def _asked(hospital: Hospital) -> tuple[int, str]:
    """Be the agent in a child; exit code of our tree, and what it said."""
    log = hospital.work / "log.txt"
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 2)
        code = 0
        try:
            hospital.ask()
        except CallosumError as error:
            code = error.exit_code
        except BaseException:  # noqa: BLE001  the child must not return into the parent's loop
            traceback.print_exc()
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, log.read_text(errors="replace")[-1500:]
