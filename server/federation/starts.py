"""What tuning begins from: the final arrays of a model of the run, each sent where it may go.

A site's own model goes back to that site alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.comparisons import FEDERATED, brings_arrays, model_of
from common.runtime.progress import say
from server.checkpoints import Branch, load_checkpoint
from server.federation.parcel import NOTHING, Parcel, parcel_of
from server.run import Run


@dataclass(frozen=True, slots=True)
class Start:
    """A model by name, its arrays, and who contributed to it."""

    model: str
    parcel: Parcel
    lineage: tuple[str, ...]


class Starts:
    """The starts of one run's ways; each model is read once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._read: dict[str, Start] = {}

    def of(self, start: str, sites: Sequence[str], title: str) -> dict[str, Start]:
        """What each of `sites` begins from; one whose model was not trained is said and left out.

        Of nothing, and of scratch, no array travels.
        """
        models = {site: model_of(start, site) for site in sites}
        lacking = sorted({m for m in models.values() if not self._branch(m).final.exists()})
        if lacking:
            say(f"{title}: {', '.join(lacking)} was not trained, so nothing begins from it")
        able = {site: model for site, model in models.items() if model not in lacking}
        found = {site: self._of_model(model) for site, model in able.items()}
        if brings_arrays(start):
            return found
        return {site: replace(one, parcel=NOTHING) for site, one in found.items()}

    def _of_model(self, model: str) -> Start:
        if model not in self._read:
            study, branch = self._run.study, self._branch(model)
            final = load_checkpoint(branch.final, study)
            parcel = parcel_of(final.arrays, branch.plan(study))
            self._read[model] = Start(model, parcel, final.lineage.contributors)
        return self._read[model]

    def _branch(self, model: str) -> Branch:
        return self._run.federated if model == FEDERATED else self._run.comparison(model)
