"""The phases of a run, each of which resumes by itself.

census -> overlaps -> settled constants -> federated rounds -> rival models -> fine-tuning -> what
is asked of the tuned models -> out-of-site evaluation -> results.csv.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common import label_sums, site_shortcuts
from common.arrays import Arrays
from common.errors import SENTENCES, DataError, LineageError, QuorumError
from common.network.plan import Plan
from common.protocol.orders import Order, Report
from common.protocol.tokens import salt_of
from common.protocol.wire import Stored, open_arrays, write_arrays
from common.runtime.progress import say
from common.sections import FineTuning
from common.seeding import seed_of
from common.site_shortcuts import AFTER, BEFORE, Moments
from common.study import Study
from server import site_findings
from server.federation.census import POOLED, summarise
from server.federation.exchange import Exchange, Outcome
from server.federation.parcel import NOTHING, Parcel, parcel_of
from server.federation.report_validation import Sound
from server.federation.rounds import Rounds
from server.lineage import Use, begun
from server.overlap import (
    Held,
    Overlaps,
    copies,
    findings,
    held_before,
    held_now,
    keep,
    seen_with,
    took_part,
)
from server.results import write_results
from server.run import (
    Branch,
    Checkpoint,
    Run,
    about_checkpoint,
    load_checkpoint,
    read_json,
    read_refused,
    seen_by,
    start_arrays,
    start_lineage,
    start_seen,
    write_json,
)

OVERLAP: Final = "overlap"  # folder of sites' tokens
_FOLDERS: Final = {"finetune": "finetuning", "protocol": "protocols"}
REFUSED: Final = "refused.json"  # who declined the orders of a folder, and with which code


@dataclass(frozen=True, slots=True)
class Phases:
    """The phases of one run, in order."""

    run: Run
    exchange: Exchange
    out: Path | None = None  # where judges' answers go; the run's own folder if nothing is said

    @property
    def _out(self) -> Path:
        return self.out or self.run.folder

    def all(self) -> None:
        """Everything the study asks for; what is done already is not done again."""
        study = self.run.study
        census = self._take_census()
        able = [site for site in study.sites.train if site in census]
        rounds = self._settled(self.run.federated, study.sites.train, study.quorum, census)
        if rounds is not None:
            rounds.train()
        self._train_rivals(self._comparisons(census, able), census)
        if POOLED in census:
            orders = self._orders("linear", [POOLED], NOTHING)
            self._ask(orders, NOTHING, self.run.linear, {}, "linear: sites")
        self._finetune(able, census)
        self._compare(able, census)
        self._sum_labels(able)
        self._tell_shortcuts(able)
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
        finished = [branch for branch in self.run.branches() if branch.final.exists()]
        for branch in finished:
            self._none_took_part(branch, sites, census)
        for branch in finished:
            final = load_checkpoint(branch.final, study)
            parcel = parcel_of(final.arrays, branch.plan(study))
            self._judge_one(branch.model, parcel, final.lineage.contributors, sites)
        linear = self.run.linear / f"{POOLED}.safetensors"
        if linear.exists():
            with open_arrays(linear) as file:
                parcel = parcel_of(file.all(), {})
            self._judge_one(f"{POOLED}-linear", parcel, study.sites.train, sites)
        for model, values in self._constants().items():
            if values:
                self._judge_one(model, parcel_of(values, {}), study.sites.train, sites)

    def _sum_labels(self, sites: Sequence[str]) -> None:
        """Ask training sites for what their labels add up to (`common.label_sums`)."""
        study = self.run.study
        if study.evaluation.baselines and label_sums.numbers(study):
            orders = self._orders("settle", sites, NOTHING, model=label_sums.BASELINES)
            plan, sound = label_sums.plan_of_sums(study), label_sums.refuse_unsound
            self._ask(orders, NOTHING, self._labels, plan, "labels: sites", sound)

    def _tell_shortcuts(self, sites: Sequence[str]) -> None:
        """How well features give a person's site away, before and after training."""
        study, branch = self.run.study, self.run.federated
        if not study.evaluation.shortcuts or len(sites) < 2:
            return
        from server.federation.initial import before_training

        final = load_checkpoint(branch.final, study).arrays
        of = {AFTER: final}
        if study.pretraining.rounds or study.harmonises:
            of = {BEFORE: before_training(study, start_arrays(self.run), final), **of}
        told = {}
        for model, arrays in of.items():
            parcel = parcel_of(arrays, branch.plan(study))
            fitted, judged = (self._moments(sites, parcel, model, number) for number in (0, 1))
            found = site_shortcuts.guessed(fitted, judged, seed_of(study.seed, model))
            told[model] = found.told if found else "nobody: no two sites gave sums"
        text = site_findings.shortcuts(told.get(BEFORE, ""), told[AFTER])
        say(text)
        site_findings.keep(self.run.folder, [*site_findings.kept(self.run.folder), text])

    def _moments(
        self, sites: Sequence[str], parcel: Parcel, model: str, number: int
    ) -> dict[str, Moments]:
        """What each site's training (0) or validation people's features add up to."""
        study, folder = self.run.study, self.run.folder / "shortcuts" / model / str(number)
        orders = self._orders("settle", sites, parcel, round=number, model=model)
        plan, sound = site_shortcuts.plan_of_sums(study), site_shortcuts.refuse_unsound
        self._ask(orders, parcel, folder, plan, f"{model}: sites", sound)
        stored = sorted(folder.glob("*.safetensors"))
        return {path.stem: Moments.of_sums(Stored(path)) for path in stored}

    def _constants(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Mean and median of the training labels, as far as sites have told."""
        parts = [Stored(path) for path in sorted(self._labels.glob("*.safetensors"))]
        return label_sums.constants_of(self.run.study, parts) if parts else {}

    @property
    def _labels(self) -> Path:
        return self.run.folder / "labels"

    def _none_took_part(
        self, branch: Branch, sites: Sequence[str], census: Mapping[str, Report]
    ) -> None:
        lineage = about_checkpoint(branch.final, self.run.study).lineage
        seen = held_before(lineage, seen_by(branch.final))
        held = held_now(self.run.study, {site: census[site] for site in sites}, self._out / OVERLAP)
        for judge in held.values():
            if why := took_part(judge, lineage.contributors, seen):
                raise LineageError(f"{judge.site} cannot judge {branch.model}: {why}")

    def _judge_one(
        self,
        model: str,
        parcel: Parcel,
        lineage: Sequence[str],
        sites: Sequence[str],
    ) -> None:
        orders = self._orders(
            "evaluate",
            sites,
            parcel,
            lineage=tuple(lineage),
            model=model,
            against=() if model == "federated" else ("federated",),
        )
        folder = self._out / "evaluation" / model
        self._ask(orders, parcel, folder, {}, f"evaluating {model}: sites")

    def census_of(self, sites: Sequence[str]) -> Outcome:
        """Ask `sites` what they hold, in counts, and for tokens of their scans."""
        orders = self._orders("census", sites, NOTHING)
        outcome = self._ask(orders, NOTHING, self._out / "census", {}, "census: sites")
        self.exchange.census = outcome.reports
        # all training data in one place are those of sites that are asked themselves
        able = [site for site in sorted(outcome.reports) if site != POOLED]
        orders = self._orders("overlap", able, NOTHING)
        self._ask(orders, NOTHING, self._out / OVERLAP, {}, "overlap: sites")
        return outcome

    def overlaps(
        self, census: Mapping[str, Report], before: Sequence[Held], refused: Sequence[str] = ()
    ) -> None:
        """What the sites of a census share with each other, kept and said.

        `before` are those of the studies that led here, with whom it must be possible to compare;
        `refused` says of judges why they are none.
        """
        study = self.run.study
        held = held_now(study, census, self._out / OVERLAP)
        trainers = [held[site] for site in study.sites.train if site in held]
        judges = [held[site] for site in census if site in held and site not in study.sites.train]
        codes, doubled = self._refusals(OVERLAP), copies(judges)
        told = [
            *refused,
            *findings(trainers, judges, before, codes),
            *(
                f"{text}: {site} counts in no figure over all sites"
                for site, text in doubled.items()
            ),
        ]
        keep(self._out, Overlaps(findings=tuple(told), copies=doubled))
        for text in told:
            say(text)

    def _take_census(self) -> dict[str, Report]:
        """What every site holds; a site that cannot take part is named, not fatal."""
        study = self.run.study
        names = [*study.sites.train, *study.sites.heldout]
        pooled = [POOLED] if self.exchange.knows(POOLED) else []
        outcome = self.census_of([*names, *pooled])
        lineage = start_lineage(self.run)
        before = held_before(lineage, start_seen(self.run)) if lineage is not None else []
        refused = self._without_judges_that_took_part(outcome, before)
        reports = {site: outcome.reports[site] for site in names if site in outcome.reports}
        self.overlaps(reports, before, refused)
        summary = summarise(study, outcome.reports, outcome.refused)
        write_json(self.run.folder / "census.json", summary)
        able = [site for site in study.sites.train if site in outcome.reports]
        if len(able) < study.quorum:
            codes = "; ".join(f"{site}: {code}" for site, code in sorted(outcome.refused.items()))
            raise QuorumError(
                f"{len(able)} of {len(study.sites.train)} training sites can take part, the quorum "
                f"is {study.quorum}; {codes}. Mend those sites or lower sites.quorum"
            )
        if study.learns_from_labels:
            _targets_are_held(study, [outcome.reports[site] for site in able])
        for text in (
            *site_findings.without_labels(study, summary),
            *site_findings.imputed(summary),
        ):
            say(text)
        return outcome.reports

    def _without_judges_that_took_part(self, outcome: Outcome, before: Sequence[Held]) -> list[str]:
        """Before any work: no held-out site is one that trains, or trained, under another name.

        It is left out and named. What a site says of its scans must not end everybody's run.
        """
        study, start = self.run.study, self.run.study.start
        held = held_now(study, outcome.reports, self._out / OVERLAP)
        known = [*(held[site] for site in study.sites.train if site in held), *before]
        names, told = start.contributors if start is not None else (), list[str]()
        for site in study.sites.heldout:
            if site in held and (why := took_part(held[site], names, known)):
                told.append(f"{site} does not judge: {why}")
                del outcome.reports[site]
                outcome.refused[site] = "ROLE"
        return told

    def _train_rivals(
        self, rivals: Sequence[tuple[Branch, Sequence[str]]], census: Mapping[str, Report]
    ) -> None:
        """Train rival models, several at a time where the grid works on several orders at once.

        No two have a site in common. One that fails must not end the run.
        """

        def trained(branch: Branch, sites: Sequence[str], exchange: Exchange) -> None:
            try:
                # what draws a network's first weights goes by the whole process's chance
                with drawing:
                    phases = replace(self, exchange=exchange)
                    rounds = phases._settled(branch, sites, len(sites), census)  # noqa: SLF001
                if rounds is not None:
                    rounds.train()
            except QuorumError as error:
                say(f"{branch.model} is left out: {error}")

        drawing, at_once = Lock(), self.exchange.at_once
        if at_once == 1:
            for branch, sites in rivals:
                trained(branch, sites, self.exchange)
            return
        longest_first = sorted(rivals, key=lambda one: one[1] != (POOLED,))
        with ThreadPoolExecutor(at_once, thread_name_prefix="rival") as pool:
            every = [
                pool.submit(trained, branch, sites, self.exchange.another())
                for branch, sites in longest_first
            ]
            for one in every:
                one.result()

    def _settled(
        self, branch: Branch, sites: Sequence[str], quorum: int, census: Mapping[str, Report]
    ) -> Rounds | None:
        """A model's rounds, once its first checkpoint is there; None if no rounds are left."""
        study = self.run.study
        newest = branch.latest(study)  # first: a damaged final model is made again
        members = study.sites.train if sites == (POOLED,) else sites
        self._keep_seen(branch, {site: census[site] for site in members if site in census})
        if branch.final.exists():
            return None
        reports = [census[site] for site in sites if site in census]
        names = [report.site for report in reports]
        if newest is None:
            self._begin(
                branch, names, {site: census[site] for site in members if site in census}, quorum
            )
        if branch.final.exists():  # all of it is settled
            return None
        return Rounds(
            self.run,
            branch,
            self.exchange,
            sites=names,
            quorum=quorum,
            members={POOLED: study.sites.train},
            absent={site: "NO_ANSWER" for site in sites if site not in census}
            | {site: code for site, code in self._refusals("census").items() if site in sites},
        )

    def _keep_seen(self, branch: Branch, census: Mapping[str, Report]) -> None:
        """Tokens of what the model sees, beside it, for whoever begins from it or judges it."""
        lineage, before = start_lineage(self.run), start_seen(self.run)
        held = held_now(self.run.study, census, self.run.folder / OVERLAP)
        stage = len(lineage.stages) if lineage is not None else 0
        seen = seen_with(before, stage, held.values())
        if seen and not branch.seen.exists():
            write_arrays(branch.seen, seen, {})

    def _begin(
        self, branch: Branch, sites: Sequence[str], census: Mapping[str, Report], quorum: int
    ) -> None:
        """The checkpoint before the first round: drawn, taken over, settled; with its lineage.

        Without any rounds it is the final one, made by those who gave sums.
        """
        from server.federation.initial import initial  # torch, for as long as it is needed

        study, settled = self.run.study, set[str]()
        whole = not study.pretraining.rounds

        def ask(number: int, so_far: Arrays, plan: Plan, sound: Sound) -> list[Stored]:
            found = self._sums(branch, sites, number, so_far, plan, sound)
            if whole and len(found) < quorum:
                raise QuorumError(
                    f"{len(found)} of {len(sites)} sites gave sums for {branch.model}, the quorum "
                    f"is {quorum}; the same command asks the missing sites again"
                )
            settled.update(found)
            return [found[site] for site in sorted(found)]

        arrays, plan = initial(study, start_arrays(self.run), ask)
        before = start_lineage(self.run)
        lineage = begun(study, branch.model, before, census, salt_of(study))
        # all training data in one place are its members'
        behind = census if settled == {POOLED} else settled
        use: Use = "weights" if whole else "constants"
        lineage = lineage.used(behind, use)
        if study.harmonises:
            lineage = lineage.used(behind, "harmonisation")
        first = Checkpoint(round=0, arrays=arrays, state={}, lineage=lineage)
        branch.save(first, study, plan, last=whole)

    def _sums(
        self,
        branch: Branch,
        sites: Sequence[str],
        number: int,
        so_far: Arrays,
        plan: Plan,
        sound: Sound,
    ) -> dict[str, Stored]:
        """Each site's sums for the constants of one model, in site order."""
        parcel = parcel_of(so_far, {})
        orders = self._orders("settle", sites, parcel, round=number, model=branch.model)
        folder = branch.folder / "settle" / f"{number:04d}"
        outcome = self._ask(orders, parcel, folder, plan, f"{branch.model}: settling, sites", sound)
        if not outcome.reports:
            codes = "; ".join(f"{site}: {code}" for site, code in sorted(outcome.refused.items()))
            raise QuorumError(f"no site's sums settle the constants of {branch.model}; {codes}")
        found = {site: Stored(folder / f"{site}.safetensors") for site in sorted(outcome.reports)}
        if branch == self.run.federated and number == 0:
            self._compare_columns(found)
        return found

    def _compare_columns(self, sums: Mapping[str, Stored]) -> None:
        """Name sites whose columns are in other units; the sums are all that tells of it."""
        study = self.run.study
        found = [
            *site_findings.never_measured(study, sums),
            *site_findings.unlike_columns(study, sums),
        ]
        census = read_json(self.run.folder / "census.json")
        site_findings.keep(self.run.folder, [*site_findings.imputed(census), *found])
        for text in found:
            say(text)

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

    def _finetune(self, sites: Sequence[str], census: Mapping[str, Report]) -> None:
        """Each task at each training site that has its labels, by each of the study's methods."""
        study, branch = self.run.study, self.run.federated
        if not study.finetuning:
            return
        final = load_checkpoint(branch.final, study)
        parcel = parcel_of(final.arrays, branch.plan(study))
        for task in (task for task in study.finetuning if task.repeats):
            able = self._with_labels(task.target, sites, census, f"fine-tuning {task.name}")
            for named in ways_of(task):
                more = {**named, "task": task.name, "lineage": final.lineage.contributors}
                compared = {**more, "against": _before(task, named)}
                self._tuned("finetune", able, parcel, compared)
                for kind in task.then:
                    asked = compared if kind == "judge" else more
                    self._afterwards(kind, able, parcel, task, asked)

    def _compare(self, sites: Sequence[str], census: Mapping[str, Report]) -> None:
        """Each protocol at each training site that has its labels: an order a way and size."""
        study, branch = self.run.study, self.run.federated
        if not study.protocols:
            return
        final = load_checkpoint(branch.final, study)
        parcel = parcel_of(final.arrays, branch.plan(study))
        for protocol in study.protocols:
            task = study.task_of(protocol)
            able = self._with_labels(task.target, sites, census, f"protocol {protocol.name}")
            for size, way in itertools.product(protocol.counts, task.methods):
                init, _, method = way.rpartition("/")
                more = {
                    "task": protocol.name, "init": init, "method": method, "k": size,
                    "lineage": final.lineage.contributors,
                    "against": _before(task, {"init": init, "method": method}),
                }  # fmt: skip
                self._tuned("protocol", able, parcel, more)

    def _with_labels(
        self, target: str, sites: Sequence[str], census: Mapping[str, Report], title: str
    ) -> list[str]:
        """Those of `sites` that hold labels of a target; the others are named."""
        able = [site for site in sites if census[site].support.get(f"labels/{target}", 0)]
        lacking = ", ".join(site for site in sites if site not in able)
        if lacking:
            say(f"{title}: no labels of {target} at {lacking}")
        return able

    def _afterwards(
        self,
        kind: str,
        sites: Sequence[str],
        parcel: Parcel,
        task: FineTuning,
        more: Mapping[str, Any],
    ) -> None:
        """Judge the tuned models that sites keep, have them explained, or sent."""
        if kind == "judge":
            self._tuned(kind, sites, parcel, more)
            return
        if more["method"] in ("frozen", "linear"):
            return  # no network was tuned
        from server.federation.initial import map_plan, tuned_plan

        study = self.run.study
        plan = (
            map_plan(study, task) if kind == "explain" else tuned_plan(study, task, more["method"])
        )
        for repeat in range(task.repeats * (task.draws if more["k"] else 1)):
            self._tuned(kind, sites, parcel, {**more, "repeat": repeat}, plan)

    def _tuned(
        self,
        kind: str,
        sites: Sequence[str],
        parcel: Parcel,
        more: Mapping[str, Any],
        plan: Plan | None = None,
    ) -> None:
        carried = parcel if more["init"] == "pretrained" else NOTHING
        orders = self._orders(kind, sites, carried, **more)
        name = _named(more["init"], more["method"])
        name += f"-k{more['k']}" if more["k"] else ""
        name += f"-repeat{more['repeat']}" if "repeat" in more else ""
        folder = self.run.folder / _FOLDERS.get(kind, kind) / more["task"]
        verb = "fine-tuning" if kind == "finetune" else kind
        self._ask(
            orders, carried, folder / name, plan or {}, f"{verb} {more['task']}, {name}: sites"
        )

    def _ask(
        self,
        orders: Sequence[Order],
        parcel: Parcel,
        folder: Path,
        plan: Plan,
        title: str,
        sound: Sound | None = None,
    ) -> Outcome:
        outcome = self.exchange.ask(orders, parcel, folder, plan, title, sound)
        if outcome.refused or (folder / REFUSED).exists():
            write_json(folder / REFUSED, outcome.refused)
        for site, code in sorted(outcome.refused.items()):
            say(f"{title.partition(':')[0]}: {site} did not take part: {code}: {SENTENCES[code]}")
        return outcome

    def _refusals(self, phase: str) -> dict[str, str]:
        path = self._out / phase / REFUSED
        return read_refused(path) if path.exists() else {}

    def _orders(
        self, kind: str, sites: Sequence[str], parcel: Parcel, **more: object
    ) -> list[Order]:
        """The same order for each of `sites`, about the arrays of `parcel`."""
        common = {
            "kind": kind,
            "study": self.run.study.digest,
            "run": self.run.id,
            **parcel.digests,
            **more,
        }
        return [Order.model_validate({**common, "site": site}) for site in sites]


def ways_of(task: FineTuning) -> Iterator[dict[str, Any]]:
    """Start, method and number of people of every comparison that a task asks for."""
    for way in task.methods:
        init, _, method = way.rpartition("/")
        for k in task.participants or (0,):
            yield {"init": init, "method": method, "k": k}


def _before(task: FineTuning, way: Mapping[str, Any]) -> tuple[str, ...]:
    """The task's methods that come before one: it is compared with each, person by person."""
    names = [_named(*one.rpartition("/")[::2]) for one in task.methods]
    return tuple(names[: names.index(_named(way["init"], way["method"]))])


def _named(init: str, method: str) -> str:
    return "-".join(part for part in (init, method) if part)


def _targets_are_held(study: Study, reports: Sequence[Report]) -> None:
    """A target that no training site holds would leave its head as it was drawn."""
    for name in study.pretraining_targets:
        if not any(report.support.get(f"labels/{name}", 0) for report in reports):
            raise DataError(
                f'no training site holds labels of "{name}"; remove the target from the study or '
                f"map its column in a site file ([targets.{name}])"
            )
