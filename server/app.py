"""Flower's ServerApp: opens the run and drives its phases, each of which resumes by itself.

census -> federated rounds -> comparisons -> fine-tuning -> out-of-site evaluation -> results.csv.
Run config: `run` is the run folder, `nodes` a JSON object from site name to Flower node id, `key`
the file of the coordinator's signing key, empty where sites and coordinator are one process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import FileHandler, Formatter, getLogger
from pathlib import Path
from typing import Any, Final

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from common.errors import (
    SENTENCES,
    CallosumError,
    DataError,
    LineageError,
    QuorumError,
    RunBusyError,
)
from common.plan import Plan
from common.protocol.orders import Order, Report, digest_of
from common.protocol.signing import read_private_key
from common.protocol.wire import open_arrays
from common.runtime.progress import say
from common.study import Study
from server.federation.census import POOLED, constants, summarise
from server.federation.exchange import Exchange, Outcome
from server.federation.progress import ProgressFile
from server.federation.rounds import Rounds
from server.results import write_results
from server.run import Branch, Checkpoint, Run, load_checkpoint, open_run, read_run, write_json
from server.run_state import note_failure

app = ServerApp()
_log = getLogger("callosum.server")
REFUSED: Final = "refused.json"  # who declined the orders of a folder, and with which code


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of a run folder over Flower's grid."""
    folder = Path(str(context.run_config["run"]))
    _log_to(folder / "run.log")
    nodes: dict[str, int] = json.loads(str(context.run_config["nodes"]))
    key = str(context.run_config["key"])
    study = read_run(folder).study
    exchange = Exchange(
        grid,
        nodes,
        study,
        key=read_private_key(Path(key)) if key else None,
        progress=ProgressFile(folder, study.pretraining.rounds),
    )
    try:
        with open_run(folder, study) as run:
            Phases(run, exchange, grid, nodes).all()
    except RunBusyError:  # a ServerApp that lost its hub still ends; trying again is right
        raise
    except CallosumError as error:  # whoever drives the run must not try for ever
        note_failure(folder, str(error))
        raise
    except Exception:
        _log.exception("the run broke off")
        raise


def _log_to(path: Path) -> None:
    """Keep what is logged beside the run: Flower shows it to nobody who does not ask in time."""
    for handler in list(_log.handlers):
        _log.removeHandler(handler)
        handler.close()
    handler = FileHandler(path)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)


@dataclass(frozen=True, slots=True)
class Phases:
    """The phases of one run, in order."""

    run: Run
    exchange: Exchange
    grid: Grid
    nodes: dict[str, int]

    def all(self) -> None:
        """Everything the study asks for; what is done already is not done again."""
        study = self.run.study
        census = self._take_census()
        able = [site for site in study.sites.train if site in census]
        self._pretrain(self.run.federated, study.sites.train, study.quorum, census)
        for branch, sites in self._comparisons(census, able):
            try:
                self._pretrain(branch, sites, len(sites), census)
            except QuorumError as error:  # a rival that fails must not end the run
                say(f"{branch.model} is left out: {error}")
        if POOLED in census:
            self._ask(
                self._orders("linear", [POOLED], {}), {}, self.run.linear, {}, "linear: sites"
            )
        self._finetune(able)
        self.judge([site for site in study.sites.heldout if site in census], census)
        write_results(self.run)

    def judge(self, sites: Sequence[str], census: Mapping[str, Report]) -> None:
        """Let each of `sites` evaluate every model; none of them may have contributed to any.

        Raises
        ------
        LineageError
            If a site, or its very scans under another name, took part in training.
        """
        study = self.run.study
        training = [census[site] for site in study.sites.train if site in census]
        for branch in self.run.branches():
            if not branch.final.exists():
                continue
            final = load_checkpoint(branch.final, study)
            for site in sites:
                _took_no_part(site, census[site], final, branch.model)
            self._judge_one(branch.model, final.arrays, final.contributors, sites, training)
        linear = self.run.linear / f"{POOLED}.safetensors"
        if linear.exists():
            with open_arrays(linear) as file:
                arrays = file.all()
            self._judge_one(f"{POOLED}-linear", arrays, study.sites.train, sites, training)

    def _judge_one(
        self,
        model: str,
        arrays: Mapping[str, NDArray[Any]],
        lineage: Sequence[str],
        sites: Sequence[str],
        training: Sequence[Report],
    ) -> None:
        orders = self._orders(
            "evaluate",
            sites,
            arrays,
            lineage=tuple(lineage),
            model=model,
            against=() if model == "federated" else ("federated",),
            constants=constants(self.run.study, training),
        )
        folder = self.run.folder / "evaluation" / model
        self._ask(orders, arrays, folder, {}, f"evaluating {model}: sites")

    def census_of(self, sites: Sequence[str]) -> Outcome:
        """Ask `sites` what they hold."""
        folder = self.run.folder / "census"
        return self._ask(self._orders("census", sites, {}), {}, folder, {}, "census: sites")

    def _take_census(self) -> dict[str, Report]:
        """What every site holds; a site that cannot take part is named, not fatal."""
        study = self.run.study
        names = [*study.sites.train, *study.sites.heldout]
        outcome = self.census_of([*names, POOLED] if POOLED in self.nodes else names)
        write_json(
            self.run.folder / "census.json", summarise(study, outcome.reports, outcome.refused)
        )
        self.exchange.census = outcome.reports
        able = [site for site in study.sites.train if site in outcome.reports]
        if len(able) < study.quorum:
            codes = "; ".join(f"{site}: {code}" for site, code in sorted(outcome.refused.items()))
            raise QuorumError(
                f"{len(able)} of {len(study.sites.train)} training sites can take part, the quorum "
                f"is {study.quorum}; {codes}. Mend those sites or lower sites.quorum"
            )
        if study.learns_from_labels:
            _targets_are_held(study, [outcome.reports[site] for site in able])
        return outcome.reports

    def _pretrain(
        self, branch: Branch, sites: Sequence[str], quorum: int, census: Mapping[str, Report]
    ) -> None:
        if branch.final.exists():
            return
        study = self.run.study
        reports = [census[site] for site in sites if site in census]
        if branch.latest(study) is None:
            from server.federation.initial import initial  # torch, for as long as it is needed

            arrays, plan = initial(study, reports, self.run.folder / "census")
            first = Checkpoint(
                round=0,
                arrays=arrays,
                state={},
                contributors=(),
                cohorts=tuple(sorted(report.cohort for report in reports)),
            )
            branch.save(first, study, plan, last=False)
            del first, arrays
        plan = branch.plan(study)
        strategy = Rounds(
            self.run,
            branch,
            self.exchange,
            sites=[report.site for report in reports],
            quorum=quorum,
            plan=plan,
            members={POOLED: study.sites.train},
            absent={site: "NO_ANSWER" for site in sites if site not in census}
            | {site: code for site, code in self._refusals("census").items() if site in sites},
        )
        strategy.start(self.grid, ArrayRecord(), num_rounds=study.pretraining.rounds)

    def _comparisons(
        self, census: Mapping[str, Report], able: Sequence[str]
    ) -> list[tuple[Branch, tuple[str, ...]]]:
        """Rival models: one for each training site that can take part, and one of pooled data."""
        wanted = self.run.study.comparisons
        found: list[tuple[Branch, tuple[str, ...]]] = []
        if wanted.single_site and len(able) > 1:
            found += [(self.run.comparison(f"single-{site}"), (site,)) for site in able]
        if wanted.pooled and POOLED in census and len(able) > 1:
            found.append((self.run.comparison(POOLED), (POOLED,)))
        return found

    def _finetune(self, sites: Sequence[str]) -> None:
        """Each task at each training site, from the federated backbone and from its rivals."""
        final = load_checkpoint(self.run.federated.final, self.run.study)
        for task in self.run.study.finetuning:
            for init in task.inits:
                orders = self._orders(
                    "finetune",
                    sites,
                    final.arrays,
                    lineage=final.contributors,
                    task=task.name,
                    init=init,
                )
                folder = self.run.folder / "finetuning" / task.name / init
                title = f"fine-tuning {task.name}, {init}: sites"
                self._ask(orders, final.arrays, folder, {}, title)

    def _ask(
        self,
        orders: Sequence[Order],
        arrays: Mapping[str, NDArray[Any]],
        folder: Path,
        plan: Plan,
        title: str,
    ) -> Outcome:
        outcome = self.exchange.ask(orders, arrays, folder, plan, title)
        if outcome.refused or (folder / REFUSED).exists():
            write_json(folder / REFUSED, outcome.refused)
        for site, code in sorted(outcome.refused.items()):
            say(f"{title.partition(':')[0]}: {site} did not take part: {code}: {SENTENCES[code]}")
        return outcome

    def _refusals(self, phase: str) -> dict[str, str]:
        path = self.run.folder / phase / REFUSED
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _orders(
        self,
        kind: str,
        sites: Sequence[str],
        arrays: Mapping[str, NDArray[Any]],
        **more: object,
    ) -> list[Order]:
        """The same order for each of `sites`, about the arrays that will be sent along."""
        common = {
            "kind": kind,
            "study": self.run.study.digest,
            "run": self.run.id,
            "arrays": digest_of(arrays),
            **more,
        }
        return [Order.model_validate({**common, "site": site}) for site in sites]


def _took_no_part(site: str, report: Report, final: Checkpoint, model: str) -> None:
    if site in final.contributors:
        raise LineageError(f"{site} contributed to {model} and cannot judge it")
    if report.cohort in final.cohorts:
        raise LineageError(
            f"the scans of {site} are those of a training site of {model} under another name"
        )


def _targets_are_held(study: Study, reports: Sequence[Report]) -> None:
    """A target that no training site holds would leave its head as it was drawn."""
    for name in study.pretraining_targets:
        if not any(report.support.get(f"labels/{name}", 0) for report in reports):
            raise DataError(
                f'no training site holds labels of "{name}"; remove the target from the study or '
                f"map its column in a site file ([targets.{name}])"
            )
