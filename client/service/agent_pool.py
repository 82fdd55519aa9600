"""A site's agent for a study, from the site's data as they are: prepared, mapped, ready for orders.

Preparing takes hours at first and a moment afterwards, so a daemon does it in the background and
keeps what it opened for as long as the prepared data are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from client.authority.differencing import FILE, Censuses
from client.authority.label_sets import with_settled_labels
from client.authority.records import Records
from client.data.cohort import Cohort, empty_cohort, open_cohort
from client.data.generation import current_generation, prepared_folder
from client.data.prepare import prepare
from client.data.reader import find_sources, is_lazy
from client.data.splits import pseudonyms, secret_of
from client.service.agent import Agent
from client.site import Site
from common.errors import DataError
from common.network.size import outline
from common.runtime.private_folder import own_folder
from common.runtime.progress import say, track
from common.study import Study

_AT_ONCE: Final = 4  # studies; one that takes hours must not keep the others from being looked at


def open_agent(
    study: Study,
    site: Site,
    *,
    keeps_training: bool = True,
    records: Records | None = None,
    tell: Callable[[str], None] = say,
) -> Agent:
    """Prepare a site's data and stand its agent up; a site that has none can still decline.

    `tell` is given what a person should know, in lines that may name scans.
    """
    own_folder(site.state)
    try:
        if not is_lazy(study):
            total = len(find_sources(study, site).sources)
            with track(f"{site.name}: preparing, scans", total) as advance:
                prepare(study, site, advance=advance)
        cohort = open_cohort(study, site)
    except DataError as error:
        tell(f"{site.name} cannot take part in {study.name}: {error}")
        return Agent(
            site, study, empty_cohort(study), keeps_training=keeps_training, records=records
        )
    if records is not None:  # else nothing leaves
        cohort = _without_newcomers(site, cohort, tell)
        cohort = with_settled_labels(study, site, cohort, tell)
    left_out = [finding for finding in cohort.findings if finding.left_out]
    if left_out:
        tell(f"{site.name}: {len(left_out)} left out, named in its quality.tsv; the first: "
             f"{left_out[0].what}: {left_out[0].problem}")  # fmt: skip
    for finding in cohort.findings:
        if finding.error:
            tell(f"{site.name}: {finding.what}: {finding.problem}")
    return Agent(site, study, cohort, keeps_training=keeps_training, records=records)


def _without_newcomers(site: Site, cohort: Cohort, tell: Callable[[str], None]) -> Cohort:
    """The cohort without people who have come since the last census, until they are enough.

    A census with them less the one before would be about them; a site that could not answer for
    every newcomer would take part in nothing.
    """
    names = pseudonyms(cohort.participants, secret_of(site))
    censuses, minimum = Censuses(site.state / FILE), site.policy.minimum_support
    counted = censuses.without_newcomers(frozenset(names), minimum)
    inside = [index for index, name in enumerate(names) if name in counted]
    if len(inside) < len(cohort):
        tell(
            f"{site.name}: {len(set(names)) - len(counted)} participants have come since the last "
            f"census; they take part once there are {minimum} (policy.minimum_support)"
        )
    return cohort if len(inside) == len(cohort) else cohort.subset(inside)


class AgentPool:
    """The agents of one site, a study each, opened in the background."""

    def __init__(self, site: Site, records: Records, tell: Callable[[str], None]) -> None:
        self._site, self._records, self._tell = site, records, tell
        self._mutex = threading.Lock()
        self._known: dict[str, Future[Agent]] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="opening")

    def agent(self, study: Study, *, anew: bool = False) -> Future[Agent]:
        """The study's agent, soon; opened again if its data changed, or to look if they did.

        Scans are looked through only where `anew` asks for it: a run begins with a census, and
        goes on with the data that it began with, unless somebody prepares others meanwhile.
        """
        with self._mutex:
            known = self._known.get(study.digest)
            if known is None or (known.done() and (anew or self._stale(known, study))):
                known = self._pool.submit(self._open, study)
                self._known[study.digest] = known
            return known

    def knows(self, digest: str) -> bool:
        """Whether the study with this digest was asked for before."""
        with self._mutex:
            return digest in self._known

    def keep(self, digests: Iterable[str]) -> None:
        """Let go of all other studies, unless they are being opened."""
        kept = set(digests)
        with self._mutex:
            self._known = {
                digest: agent
                for digest, agent in self._known.items()
                if digest in kept or not agent.done()
            }

    def close(self) -> bool:
        """Open no more; False if something is still being opened."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._mutex:
            return all(agent.done() for agent in self._known.values())

    def _open(self, study: Study) -> Agent:
        self._tell(f"{study.name}: the data are looked through, and prepared where they are new")
        outline(study, most=self._site.policy.largest_network)  # the policy may be stricter by now
        agent = open_agent(study, self._site, records=self._records, tell=self._tell)
        people = len(set(agent.cohort.participants))
        self._tell(f"{study.name}: {people} participants, {len(agent.cohort)} samples are ready")
        return agent

    def _stale(self, known: Future[Agent], study: Study) -> bool:
        """Whether opening failed, found nobody, or other data were prepared since."""
        if known.cancelled() or known.exception() is not None:
            return True
        if is_lazy(study):
            return False
        samples = known.result().cohort.samples
        current = current_generation(prepared_folder(study, self._site))
        mapped = getattr(samples, "filename", None)
        return current is None or mapped is None or Path(mapped).parent != current.resolve()
