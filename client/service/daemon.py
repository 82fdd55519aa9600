"""`callosum-site serve`: takes orders from the courier, has them carried out, hands reports over.

If whoever asked is gone when the work is done, the report stays on disk, and the next asking gets
it: any process here may be killed at any moment, and whoever comes after it asks again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from client.authority import approvals
from client.authority.admission import Admission
from client.authority.records import Records, open_records
from client.authority.spendings import lifetime
from client.kit import SiteKit
from client.link.frames import header
from client.link.listener import Answer, Asking, Listener, Said, serve_link
from client.service.agent_pool import AgentPool
from client.service.monitor import DONE, SiteMetrics
from client.service.site_log import announce, warn, write_log
from client.service.work_queue import HEARTBEAT_S, Phases, WorkQueue
from client.site import Site, load_site
from common.arrays import Arrays
from common.errors import Refusal, SettingError
from common.privacy.cost import Spent
from common.protocol.orders import Order, Report, refuse
from common.protocol.signing import Envelope, read_envelope, read_public_keys
from common.protocol.wire import npy_parts
from common.runtime.private_folder import own_folder
from common.runtime.supervision import told_to_stop
from common.study import Study

_GRACE_S: Final = 10.0
_LOOK_S: Final = 5.0  # between looks at what a person may have changed
_DAY_S: Final = 86_400.0
_LOSS: Final = "loss/"
# refused before anyone knew that the coordinator asks: its number used once stays usable
_UNTRUSTED: Final = frozenset({"UNSIGNED", "SIGNATURE", "EXPIRED", "REPLAYED", "ORDER_MALFORMED"})
_log = logging.getLogger("callosum.site")

Talk = Generator[Said, None, None]


@dataclass(slots=True)
class _Visit:
    """One asking: what it brought, and where its time went."""

    asking: Asking
    began: float = field(default_factory=time.monotonic)
    phases: Phases = field(default_factory=dict)

    @property
    def received(self) -> int:
        return len(self.asking.sealed.text) + self.asking.size


class Daemon:
    """Answers the askings of one site's courier.

    Parameters
    ----------
    pool : gives the agent of an approved study
    heartbeat_s : how often a waiting courier is told that somebody is at work
    """

    def __init__(
        self,
        site: Site,
        admission: Admission,
        records: Records,
        pool: AgentPool,
        metrics: SiteMetrics,
        *,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._site, self._admission, self._records = site, admission, records
        self._pool, self._metrics = pool, metrics
        self._private: list[Spent] | None = None  # what the shown epsilon is of
        self._queue = WorkQueue(
            pool,
            site.device.threads,
            heartbeat_s=heartbeat_s,
            show_queue=metrics.queue_length,
        )

    def answer(self, asking: Asking) -> Talk:
        """One conversation with the courier: the handler of `serve_link`."""
        visit = _Visit(asking)
        try:
            envelope = self._admission.admit(asking.sealed, time.time())
        except Refusal as refusal:
            yield from self._turn_away(visit, refusal)
            return
        order = envelope.order
        self._metrics.order_received(order.kind, visit.received)
        try:
            study = self._admission.study_of(order.study)
            if study is None:
                raise Refusal("STUDY_UNKNOWN", "its approval was revoked a moment ago")
            (report, arrays), joined = yield from self._queue.carry_out(
                order, study, asking, visit.phases
            )
            if joined:  # the agent has entered one departure; this is another
                report = self._enter_again(order, study, report, arrays)
        except Refusal as refusal:
            report, arrays = self._decline(order, refusal), {}
        yield from self._hand_over(envelope, report, arrays, visit)

    def look_round(self) -> None:
        """Open what a person approved, let go of what was revoked, show how things stand."""
        live = [approval.digest for approval in approvals.approved(self._site)]
        for digest in live:
            study = None if self._pool.knows(digest) else approvals.study_of(self._site, digest)
            if study is not None:
                self._pool.agent(study)
        self._pool.keep(live)
        most, spent = self._site.policy.most_exposures, self._records.ledger.exposures()
        self._metrics.exposures(spent, max(0, most - spent) if most else None)
        private = self._records.ledger.private()
        if private != self._private:  # epsilon takes some milliseconds, and this comes every second
            self._private = private
            self._metrics.epsilon(lifetime(private), self._site.policy.epsilon)
        self._metrics.paused(approvals.paused(self._site) is not None)

    def close(self) -> bool:
        """Begin no more work; False if some is still under way."""
        idle = self._queue.close()
        return self._pool.close() and idle

    def _turn_away(self, visit: _Visit, refusal: Refusal) -> Talk:
        """Refuse what was not admitted: by a report if an order can be read, else by a code."""
        try:
            envelope = read_envelope(visit.asking.sealed.text)
        except Refusal:
            self._enter_unread(refusal)
            raise refusal from None
        self._metrics.order_received(envelope.order.kind, visit.received)
        report = self._decline(envelope.order, refusal)
        trusted = refusal.code not in _UNTRUSTED
        yield from self._hand_over(envelope, report, {}, visit, closing=trusted)

    def _decline(self, order: Order, refusal: Refusal) -> Report:
        _log.warning("%s of run %.12s is declined: %s", order.kind, order.run, refusal)
        report = refuse(order, refusal.code)
        study = self._admission.study_of(order.study)
        try:
            self._records.decline(order, study.name if study is not None else "", report)
        except Exception:  # noqa: BLE001  a full disk, say; the coordinator must hear that much
            _log.exception("%s leaves without a receipt", refusal.code)
        return report

    def _enter_again(self, order: Order, study: Study, report: Report, arrays: Arrays) -> Report:
        if report.refusal:
            self._records.decline(order, study.name, report)
            return report
        if approvals.paused(self._site) is not None:
            raise Refusal("PAUSED", "the answer is kept until the same order is sent again")
        return self._records.depart(order, study.name, report, arrays)

    def _enter_unread(self, refusal: Refusal) -> None:
        size = len(header(refusal=refusal.code))
        self._metrics.order_done("", refusal.code, {}, size)
        try:
            self._records.decline_unread(refusal.code, size)
        except Exception:  # noqa: BLE001  likewise
            _log.exception("%s leaves without a receipt", refusal.code)

    def _hand_over(
        self,
        envelope: Envelope,
        report: Report,
        arrays: Arrays,
        visit: _Visit,
        *,
        closing: bool = True,
    ) -> Talk:
        """Send the report; the delivery is closed only when the courier confirms all of it."""
        order, since = envelope.order, time.monotonic()
        answer = Answer(report.model_dump_json(), [(n, npy_parts(a)) for n, a in arrays.items()])
        handed = False
        try:
            yield answer
            if closing:
                self._records.ledger.close(envelope.nonce)
            handed = True
        finally:
            visit.phases["send"] = time.monotonic() - since
            _log.info("%s%s", _line(order, report, visit, answer.size), "" if handed else _LEFT)
        self._metrics.order_done(order.kind, report.refusal or DONE, visit.phases, answer.size)
        self._show_losses(order, report)

    def _show_losses(self, order: Order, report: Report) -> None:
        losses = {
            name.removeprefix(_LOSS): sums[0] / sums[1]
            for name, sums in report.counts.items()
            if name.startswith(_LOSS) and sums[1]
        }
        study = self._admission.study_of(order.study) if losses else None
        if study is not None:
            self._metrics.losses(study.name, losses)


def serve(kit: SiteKit, *, socket: Path | None, listen: str | None, metrics: str | None) -> None:
    """Run a site's agent until SIGTERM or SIGINT.

    Parameters
    ----------
    socket : Unix socket for the courier; the kit's, if neither it nor `listen` is given
    listen : "host:port" instead, under the kit's mutual TLS
    metrics : "host:port" for Prometheus; None serves none

    Raises
    ------
    SettingError
        If the kit, the site file or an address cannot be used.
    FolderError
        If another agent has this site's records or serves the socket, or the state is not its own.
    """
    stop = told_to_stop()
    os.umask(0o077)  # what is written from here on is about patients
    site = load_site(kit.site_file)
    if site.name != kit.name:
        raise SettingError(
            f'the kit is for {kit.name}, but name is "{site.name}" ({site.file}); use its own kit'
        )
    if listen is not None and socket is not None:
        raise SettingError("an agent listens at one address: --socket or --listen, not both")
    own_folder(site.state)
    write_log(site.state / "agent.log")
    with open_records(site) as records:
        shown = SiteMetrics(folder=site.state)
        shown.certificate_expiry(
            datetime.combine(kit.expires, datetime.min.time(), UTC).timestamp()
        )
        daemon = _daemon(kit, site, records, shown)
        endpoint = shown.serve(metrics) if metrics else None
        listener = _listening(kit, daemon, socket, listen)
        announce(kit, site, records.ledger, at=listener.address, metrics=metrics)
        _look_round_until(stop, daemon, kit, site)
        _log.info("stopping: no more orders are taken")
        listener.stop(_GRACE_S)
        if endpoint is not None:
            endpoint.close()
        if not daemon.close():
            _log.warning("work is left as it is; the same order, asked again, goes on from there")
            logging.shutdown()
            os._exit(0)  # a training step cannot be interrupted; whatever is on disk is whole
    _log.info("stopped")


_LEFT: Final = "; nobody is there to take it"


def _line(order: Order, report: Report, visit: _Visit, sent: int) -> str:
    return (
        f"{order.kind} of run {order.run[:12]}, {order.model}, round {order.round}: "
        f"{report.refusal or DONE} in {time.monotonic() - visit.began:.1f} s, "
        f"{visit.received / 1e6:.1f} MB in, {sent / 1e6:.1f} MB out"
    )


def _daemon(kit: SiteKit, site: Site, records: Records, shown: SiteMetrics) -> Daemon:
    keys = read_public_keys(kit.coordinator_keys)
    admission = Admission(site, keys, records.ledger, partial(approvals.study_of, site))
    pool = AgentPool(site, records, lambda text: _log.info("%s", text))
    return Daemon(site, admission, records, pool, shown)


def _listening(kit: SiteKit, daemon: Daemon, socket: Path | None, listen: str | None) -> Listener:
    if listen is not None:
        return serve_link(daemon.answer, listen=listen, tls=kit.agent_tls)
    return serve_link(daemon.answer, socket=socket or kit.socket)


def _look_round_until(stop: threading.Event, daemon: Daemon, kit: SiteKit, site: Site) -> None:
    warned = time.monotonic()
    while True:
        try:
            daemon.look_round()
            if time.monotonic() - warned > _DAY_S:
                warn(kit, site)
                warned = time.monotonic()
        except Exception:  # noqa: BLE001  what is odd in the site's folder must not end the agent
            _log.exception("looking round failed")
        if stop.wait(_LOOK_S):
            return
