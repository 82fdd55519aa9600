"""The phases of a run, each of which resumes by itself.

census -> overlaps -> settled constants -> federated rounds -> rival models -> fine-tuning -> what
is asked of the tuned models -> out-of-site evaluation -> results.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import label_sums, site_shortcuts
from common.comparisons import ENSEMBLE
from common.errors import DataError, LineageError, QuorumError
from common.protocol.orders import Report
from common.protocol.wire import Stored, open_arrays
from common.runtime.progress import say
from common.seeding import seed_of
from common.site_shortcuts import AFTER, BEFORE, Moments
from common.study import Study
from server import site_findings
from server.beginning import start_arrays, start_lineage, start_seen
from server.checkpoints import Branch, about_checkpoint, load_checkpoint, seen_by
from server.constant_models import constants_of, labels_of
from server.federation.asking import OVERLAP, Asking
from server.federation.census import POOLED, summarise
from server.federation.exchange import Exchange, Outcome
from server.federation.models import Models
from server.federation.parcel import NOTHING, Parcel, parcel_of
from server.federation.tasks import Tasks
from server.overlap import (
    Held,
    Overlaps,
    copies,
    findings,
    held_before,
    held_now,
    keep,
    took_part,
)
from server.results import write_results
from server.run import Run
from server.run_files import write_json


@dataclass(frozen=True, slots=True)
class Phases:
    """The phases of one run, in order."""

    run: Run
    exchange: Exchange
    out: Path | None = None  # where judges' answers go; the run's own folder if nothing is said

    @property
    def _out(self) -> Path:
        return self.out or self.run.folder

    @property
    def _asking(self) -> Asking:
        return Asking(self.run, self.exchange, self._out)

    def all(self) -> None:
        """Everything the study asks for; what is done already is not done again."""
        study = self.run.study
        census = self._take_census()
        able = [site for site in study.sites.train if site in census]
        Models(self._asking).train(census)
        if POOLED in census:
            orders = self._asking.orders("linear", [POOLED], NOTHING)
            self._asking.ask(orders, NOTHING, self.run.linear, {}, "linear: sites")
        tasks = Tasks(self._asking)
        tasks.finetune(able, census)
        tasks.compare(able, census, "train")
        self._sum_labels(able)
        self._tell_shortcuts(able)
        judges = [site for site in study.sites.heldout if site in census]
        self.judge(judges, census)
        tasks.compare(judges, census, "heldout")
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
        self._judge_ensemble(finished, sites)
        linear = self.run.linear / f"{POOLED}.safetensors"
        if linear.exists():
            with open_arrays(linear) as file:
                parcel = parcel_of(file.all(), {})
            self._judge_one(f"{POOLED}-linear", parcel, study.sites.train, sites)
        for model, values in constants_of(self.run).items():
            if values:
                self._judge_one(model, parcel_of(values, {}), study.sites.train, sites)

    def _judge_ensemble(self, finished: Sequence[Branch], sites: Sequence[str]) -> None:
        """The mean of what the members said, which each judge has kept; if all are there."""
        wanted = self.run.study.comparisons
        several = {one.model: one for one in finished if one.model in wanted.members}
        if not wanted.ensemble or len(several) < len(wanted.members):
            return
        abouts = [about_checkpoint(one.final, self.run.study) for one in several.values()]
        lineage = sorted({site for about in abouts for site in about.lineage.contributors})
        self._judge_one(ENSEMBLE, NOTHING, lineage, sites)

    def _sum_labels(self, sites: Sequence[str]) -> None:
        """Ask training sites for what their labels add up to (`common.label_sums`)."""
        study = self.run.study
        if study.evaluation.baselines and label_sums.numbers(study):
            orders = self._asking.orders("settle", sites, NOTHING, model=label_sums.BASELINES)
            plan, sound = label_sums.plan_of_sums(study), label_sums.refuse_unsound
            self._asking.ask(orders, NOTHING, labels_of(self.run), plan, "labels: sites", sound)

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
        orders = self._asking.orders("settle", sites, parcel, round=number, model=model)
        plan, sound = site_shortcuts.plan_of_sums(study), site_shortcuts.refuse_unsound
        self._asking.ask(orders, parcel, folder, plan, f"{model}: sites", sound)
        stored = sorted(folder.glob("*.safetensors"))
        return {path.stem: Moments.of_sums(Stored(path)) for path in stored}

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
        orders = self._asking.orders(
            "evaluate",
            sites,
            parcel,
            lineage=tuple(lineage),
            model=model,
            against=() if model == "federated" else ("federated",),
        )
        folder = self._out / "evaluation" / model
        self._asking.ask(orders, parcel, folder, {}, f"evaluating {model}: sites")

    def census_of(self, sites: Sequence[str]) -> Outcome:
        """Ask `sites` what they hold, in counts, and for tokens of their scans."""
        orders = self._asking.orders("census", sites, NOTHING)
        outcome = self._asking.ask(orders, NOTHING, self._out / "census", {}, "census: sites")
        self.exchange.census = outcome.reports
        # all training data in one place are those of sites that are asked themselves
        able = [site for site in sorted(outcome.reports) if site != POOLED]
        orders = self._asking.orders("overlap", able, NOTHING)
        self._asking.ask(orders, NOTHING, self._out / OVERLAP, {}, "overlap: sites")
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
        codes, doubled = self._asking.refusals(OVERLAP), copies(judges)
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


def _targets_are_held(study: Study, reports: Sequence[Report]) -> None:
    """A target that no training site holds would leave its head as it was drawn."""
    for name in study.pretraining_targets:
        if not any(report.support.get(f"labels/{name}", 0) for report in reports):
            raise DataError(
                f'no training site holds labels of "{name}"; remove the target from the study or '
                f"map its column in a site file ([targets.{name}])"
            )
