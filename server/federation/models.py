"""The models of a run: constants settled by sites' sums, federated rounds, and rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

from common.arrays import Arrays
from common.comparisons import ENSEMBLE
from common.errors import QuorumError
from common.network.plan import Plan
from common.protocol.orders import Report
from common.protocol.tokens import salt_of
from common.protocol.wire import Stored, write_arrays
from common.runtime.progress import say
from server import site_findings
from server.beginning import start_arrays, start_lineage, start_seen
from server.checkpoints import Branch, Checkpoint
from server.federation.asking import OVERLAP, Asking
from server.federation.census import POOLED
from server.federation.exchange import Exchange
from server.federation.masked_rounds import MaskedRounds
from server.federation.parcel import parcel_of
from server.federation.report_validation import Sound
from server.federation.rounds import Rounds
from server.federation.secure_setup import Agreement, agree
from server.lineage import Use, begun
from server.overlap import held_now, seen_with
from server.run_files import read_json

Rival = tuple[Branch, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Models:
    """Trains everything that the study compares, as far as it is not trained yet."""

    asking: Asking

    def train(self, census: Mapping[str, Report]) -> None:
        """The federated model; then its like by other seeds, those of some targets, and rivals."""
        run, study = self.asking.run, self.asking.run.study
        self._train_one(run.federated, study.sites.train, study.quorum, census)
        for model in study.comparisons.members[1:]:
            try:
                self._train_one(run.comparison(model), study.sites.train, study.quorum, census)
            except QuorumError as error:
                say(f"{model} is left out, and so is {ENSEMBLE}: {error}")
        for name in sorted(study.comparisons.targets):
            self._train_of_some_targets(name, census)
        self._train_rivals(self._rivals(census), census)

    def _train_one(
        self, branch: Branch, sites: Sequence[str], quorum: int, census: Mapping[str, Report]
    ) -> None:
        """What is left to do of one model."""
        rounds = self._settled(branch, sites, quorum, census)
        if rounds is not None:
            rounds.train()

    def _train_of_some_targets(self, name: str, census: Mapping[str, Report]) -> None:
        """Like the federated model, by the sites that have labels of what this one learns."""
        study, branch = self.asking.run.study, self.asking.run.comparison(name)
        groups = [f"labels/{target}" for target in study.learnt_by(name)]
        able = [
            site
            for site in study.sites.train
            if site in census and any(census[site].support.get(group, 0) for group in groups)
        ]
        quorum = max(1, min(study.quorum, len(able)))
        try:
            if not able:
                raise QuorumError(f"no training site holds labels of {', '.join(groups)}")
            rounds = self._settled(branch, able, quorum, census)
            if rounds is not None:
                rounds.train()
        except QuorumError as error:
            say(f"{name} is left out: {error}")

    def _train_rivals(self, rivals: Sequence[Rival], census: Mapping[str, Report]) -> None:
        """Train rival models, several at a time where the grid works on several orders at once.

        No two have a site in common. One that fails must not end the run.
        """

        def trained(branch: Branch, sites: Sequence[str], exchange: Exchange) -> None:
            try:
                # what draws a network's first weights goes by the whole process's chance
                with drawing:
                    apart = Models(replace(self.asking, exchange=exchange))
                    rounds = apart._settled(branch, sites, len(sites), census)
                if rounds is not None:
                    rounds.train()
            except QuorumError as error:
                say(f"{branch.model} is left out: {error}")

        drawing, at_once = Lock(), self.asking.exchange.at_once
        if at_once == 1:
            for branch, sites in rivals:
                trained(branch, sites, self.asking.exchange)
            return
        longest_first = sorted(rivals, key=lambda one: one[1] != (POOLED,))
        with ThreadPoolExecutor(at_once, thread_name_prefix="rival") as pool:
            every = [
                pool.submit(trained, branch, sites, self.asking.exchange.another())
                for branch, sites in longest_first
            ]
            for one in every:
                one.result()

    def _rivals(self, census: Mapping[str, Report]) -> list[Rival]:
        """One for each training site that can take part, and one of pooled data."""
        able = [site for site in self.asking.run.study.sites.train if site in census]
        wanted = self.asking.run.study.comparisons
        found: list[Rival] = []
        if wanted.single_site and len(able) > 1:
            found += [(self.asking.run.comparison(f"single-{site}"), (site,)) for site in able]
        if wanted.pooled and POOLED in census and len(able) > 1:
            found.append((self.asking.run.comparison(POOLED), (POOLED,)))
        return found

    def _settled(
        self, branch: Branch, sites: Sequence[str], quorum: int, census: Mapping[str, Report]
    ) -> Rounds | None:
        """A model's rounds, once its first checkpoint is there; None if no rounds are left."""
        study, refused = self.asking.run.study, self.asking.refusals("census")
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
        masked = None
        if study.secure_sums.on:
            agree = partial(self._agreed, branch, census)
            agreed = agree()
            names = [name for name in names if name in agreed.roster.sites]
            quorum = max(quorum, agreed.fewest)
            masked = MaskedRounds(agreed, self.asking.exchange, quorum, agree)
        return Rounds(
            self.asking.run,
            branch,
            self.asking.exchange,
            sites=names,
            quorum=quorum,
            members={POOLED: study.sites.train},
            absent={site: "NO_ANSWER" for site in sites if site not in names}
            | {site: code for site, code in refused.items() if site in sites},
            masked=masked,
        )

    def _agreed(self, branch: Branch, census: Mapping[str, Report]) -> Agreement:
        """What the sites agreed on for the secure sums of all models."""
        train = self.asking.run.study.sites.train
        return agree(
            self.asking,
            branch.plan(self.asking.run.study),
            {site: report for site, report in census.items() if site in train},
        )

    def _keep_seen(self, branch: Branch, census: Mapping[str, Report]) -> None:
        """Tokens of what the model sees, beside it, for whoever begins from it or judges it."""
        lineage, before = start_lineage(self.asking.run), start_seen(self.asking.run)
        held = held_now(self.asking.run.study, census, self.asking.run.folder / OVERLAP)
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

        study, settled = self.asking.run.study, set[str]()
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

        arrays, plan = initial(study.as_trained(branch.model), start_arrays(self.asking.run), ask)
        before = start_lineage(self.asking.run)
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
        orders = self.asking.orders("settle", sites, parcel, round=number, model=branch.model)
        folder = branch.folder / "settle" / f"{number:04d}"
        outcome = self.asking.ask(
            orders, parcel, folder, plan, f"{branch.model}: settling, sites", sound
        )
        if not outcome.reports:
            codes = "; ".join(f"{site}: {code}" for site, code in sorted(outcome.refused.items()))
            raise QuorumError(f"no site's sums settle the constants of {branch.model}; {codes}")
        found = {site: Stored(folder / f"{site}.safetensors") for site in sorted(outcome.reports)}
        if branch == self.asking.run.federated and number == 0:
            self._compare_columns(found)
        return found

    def _compare_columns(self, sums: Mapping[str, Stored]) -> None:
        """Name sites whose columns are in other units; the sums are all that tells of it."""
        study = self.asking.run.study
        found = [
            *site_findings.never_measured(study, sums),
            *site_findings.unlike_columns(study, sums),
        ]
        census = read_json(self.asking.run.folder / "census.json")
        site_findings.keep(self.asking.run.folder, [*site_findings.imputed(census), *found])
        for text in found:
            say(text)
