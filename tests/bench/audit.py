"""What an audit finds of a mechanism that is whole, and of one that is broken on purpose.

The lower bound must lie below what is accounted where nothing is broken, and above it where
something is. Two settings, in which each break shows with some minutes of one core.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np
import torch

from common.privacy.accounting import epsilon
from deploy.audit.bounds import CONFIDENCE, SMALL_DELTA
from deploy.audit.canaries import bounded
from deploy.audit.mechanism import Arena, Mechanism
from tests.deploy.audit.breaks import BREAKS, SAMPLED, WHOLE, Break, intact

TRAININGS: Final = 200


def table() -> str:
    """A line for each break, and for what is whole."""
    torch.set_num_threads(1)
    cases: dict[str, tuple[Mechanism, Break]] = {
        "nothing": (SAMPLED, intact), **BREAKS, "nothing, whole": (WHOLE, intact)
    }  # fmt: skip
    about = (
        f"{TRAININGS} trainings of 256 canaries, a third of them to choose where to cut; each "
        f"bound with {100 * CONFIDENCE:g} % confidence. Beside it the bound that asks for no "
        f"independence, and what is accounted, at delta {SMALL_DELTA:g}."
    )
    heads = (
        "broken", "rate", "noise", "steps", "accounted", "at least", "accounted there",
        "at least, anyhow", "games", "score", "s",
    )  # fmt: skip
    lines = [about, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, case in cases.items():
        lines.append(_row(name, *case))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def _row(name: str, mechanism: Mechanism, broken: Break) -> str:
    began, coins = time.process_time(), np.random.default_rng(1)
    with broken():
        arena = Arena(mechanism)
        played = [arena.play(coins) for _ in range(TRAININGS)]
    trials = [{**one.scores, "inside": one.inside} for one in played]
    found, cost = bounded(trials, mechanism, CONFIDENCE), mechanism.cost
    assert found is not None
    return (
        f"| {name} | {cost.rate:.3g} | {cost.noise:g} | {cost.steps} | {mechanism.epsilon:.2f} "
        f"| {found.by_rates:.2f} | {epsilon([cost], SMALL_DELTA):.2f} | {found.by_one_run:.2f} "
        f"| {found.games:,} | {found.score} "
        f"| {time.process_time() - began:.0f} |"
    )
