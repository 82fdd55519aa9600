"""The courier's end of the link to the agent: asks, waits as long as the agent works, asks again.

An agent that is away is waited for: it may be restarting after a crash, and recognises an order
that it was asked before. Nothing here limits how long an order may take; what is limited is silence
(the agent says every few seconds that it is alive) and how long an agent may stay away.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc

from client.kit import TlsFiles
from client.link.frames import (
    LONGEST_ASKING,
    METHOD,
    chunks,
    gather,
    header,
    read_header,
    sizes_of,
    text_of,
)
from common.errors import SENTENCES, Refusal, SettingError
from common.protocol.signing import Sealed

SILENCE_S: Final = 60.0  # twelve missed signs of life
TLS_NAME: Final = "agent"  # in every agent's certificate, whatever address it is reached at
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_LONGEST_REPORT: Final = 128 << 20  # bytes; 64 MiB of text, doubled by JSON at the very worst
_REPORT: Final = "REPORT_MALFORMED"

Named = list[tuple[str, bytes]]
_log = logging.getLogger("callosum.courier")


class Watch:
    """Calls `end` once the other end has made no progress for `limit_s`; idle until touched."""

    def __init__(self, end: Callable[[], object], limit_s: float) -> None:
        self._end, self._limit_s = end, limit_s
        self._deadline: float | None = None
        self._open = True
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def touch(self) -> None:
        """There was progress, or waiting begins: count from here."""
        with self._changed:
            slept, self._deadline = self._deadline is None, time.monotonic() + self._limit_s
            if slept:
                self._changed.notify()

    def rest(self) -> None:
        """Nothing is expected of the other end for now."""
        with self._changed:
            self._deadline = None

    def close(self) -> None:
        """Watch no longer."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while self._open:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            expired = self._open
        if expired:
            self._end()


def unix_address(socket: Path) -> str:
    """How gRPC calls a Unix socket."""
    return f"unix:{socket.absolute()}"


def ask(
    address: str,
    tls: TlsFiles | None,
    sealed: Sealed,
    arrays: Iterable[tuple[str, bytes]],
    patience_s: float,
    *,
    silence_s: float = SILENCE_S,
) -> tuple[str, Named]:
    """Hand an order to the agent at `address` ("unix:/path", or "host:port" with `tls`).

    Returns the report's text and its arrays as npy bytes. An agent that is not there, or goes in
    the middle, is asked again from the start until it has been away for `patience_s`.

    Raises
    ------
    Refusal
        NO_AGENT when patience ends; the agent's code where it could read no order to report on;
        ORDER_MALFORMED if what is to be asked is longer than any order.
    SettingError
        If `address` needs certificates and has none.
    """
    channel_of = _dialler(address, tls)
    named = list(arrays)
    conversation = _Conversation(sealed, named, silence_s)
    pause_s = _FIRST_PAUSE_S
    while True:
        began, heard = time.monotonic(), conversation.heard
        try:
            with channel_of() as channel:
                return conversation.hold(channel)
        except grpc.RpcError as error:
            if conversation.heard != heard:
                pause_s = _FIRST_PAUSE_S
            again = pause_s > _FIRST_PAUSE_S  # said once, not every few seconds for minutes
            level = logging.DEBUG if again else logging.WARNING
            _log.log(level, "the agent at %s does not answer: %s", address, _reason(error))
        left_s = conversation.heard + patience_s - began
        if left_s <= 0:
            raise Refusal("NO_AGENT", f"{address} has been silent for {patience_s:.0f} s")
        time.sleep(min(left_s, pause_s * random.uniform(0.5, 1.0)))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Conversation:
    """One order put to the agent, as often as it takes; `heard` is when it last gave a sign."""

    def __init__(self, sealed: Sealed, arrays: Named, silence_s: float) -> None:
        announced = [[name, len(data)] for name, data in arrays]
        self._header = header(text=sealed.text, signature=sealed.signature, arrays=announced)
        if len(self._header) > LONGEST_ASKING:
            raise Refusal("ORDER_MALFORMED", f"its header has {len(self._header):,} bytes")
        self._arrays = arrays
        self._silence_s = silence_s
        self.heard = time.monotonic()

    def hold(self, channel: grpc.Channel) -> tuple[str, Named]:
        """Ask once; `grpc.RpcError` if the agent is away or goes away."""
        turn = _Turn()
        call = channel.stream_stream(METHOD)(self._frames(turn))
        watch = Watch(call.cancel, self._silence_s)
        turn.progress = watch.touch
        watch.touch()
        try:
            return self._listen(self._noticed(call, watch), turn)
        finally:
            turn.end()
            watch.close()
            call.cancel()

    def _frames(self, turn: _Turn) -> Iterator[bytes]:
        """What is said to the agent, each part when its turn has come."""
        yield self._header
        if turn.to_send():
            for chunk in chunks(data for _, data in self._arrays):
                if turn.reported:  # refused half-way: no use in sending the rest
                    break
                turn.progress()
                yield chunk
        if turn.to_confirm():
            yield header(received=turn.received)

    def _noticed(self, call: Iterator[bytes], watch: Watch) -> Iterator[bytes]:
        for frame in call:
            self.heard = time.monotonic()
            watch.touch()
            yield frame

    def _listen(self, frames: Iterator[bytes], turn: _Turn) -> tuple[str, Named]:
        for frame in frames:
            fields = read_header(frame, _REPORT)
            if "refusal" in fields:
                code = text_of(fields, "refusal", _REPORT)
                raise Refusal(code if code in SENTENCES else _REPORT)
            if "send" in fields:
                turn.send()
            if "report" in fields:
                turn.report()
                text, sizes = text_of(fields, "report", _REPORT), sizes_of(fields, _REPORT)
                arrays = list(gather(sizes, frames, _REPORT))
                turn.confirm(sum(size for _, size in sizes))
                with suppress(grpc.RpcError):  # the report is here, whatever befalls the agent now
                    next(frames, None)
                return text, arrays
        raise Refusal(_REPORT, "the agent ended the conversation without a report")


class _Turn:
    """Whose turn it is: the thread that sends for gRPC waits here for the one that listens."""

    def __init__(self) -> None:
        self._answered, self._complete = threading.Event(), threading.Event()
        self._wanted = False
        self.reported = False
        self.received: int | None = None
        self.progress: Callable[[], None] = lambda: None

    def to_send(self) -> bool:
        """Wait until the agent wants the arrays, or needs none."""
        self._answered.wait()
        return self._wanted

    def to_confirm(self) -> bool:
        """Wait until all of the report is here; False if it never will be."""
        self._complete.wait()
        return self.received is not None

    def send(self) -> None:
        """The agent wants the arrays."""
        self._wanted = True
        self._answered.set()

    def report(self) -> None:
        """The agent has begun its report."""
        self.reported = True
        self._answered.set()

    def confirm(self, received: int) -> None:
        """All of the report is here."""
        self.received = received
        self._complete.set()

    def end(self) -> None:
        """Nothing more will be heard."""
        self._answered.set()
        self._complete.set()


def _dialler(address: str, tls: TlsFiles | None) -> Callable[[], grpc.Channel]:
    """A function that opens a new channel to `address`."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _LONGEST_REPORT),
        # otherwise channels of one process share their connection, and gRPC's own pauses with it
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # a hospital's proxy has no business on this link
    ]
    if address.startswith("unix:"):
        return lambda: grpc.insecure_channel(address, options)
    if tls is None:
        raise SettingError(f"the agent at {address} is reached by TCP; that needs certificates")
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_file(tls.peer),
        private_key=read_file(tls.key),
        certificate_chain=read_file(tls.certificate),
    )
    options.append(("grpc.ssl_target_name_override", TLS_NAME))
    return lambda: grpc.secure_channel(address, credentials, options)


def read_file(path: Path) -> bytes:
    """A certificate or key, or `SettingError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error}") from None


def _reason(error: grpc.RpcError) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    return f"{code.name}: {error.details()}" if code is not None else str(error)
