"""The agent's end of the link: a gRPC server on a Unix socket or, with mutual TLS, on TCP.

It knows nothing of orders. A handler is given each asking and says what to answer; whatever goes
wrong here or there, the other end learns a code and nothing else.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.kit import TlsFiles
from client.link.caller import Watch, read_file, unix_address
from client.link.frames import (
    LONGEST_ASKING,
    SERVICE,
    Sizes,
    chunks,
    gather,
    header,
    read_header,
    sizes_of,
    text_of,
)
from common.errors import FolderError, Refusal, SettingError
from common.protocol.signing import LONGEST_ORDER, Sealed

STALL_S: Final = 30.0  # without a chunk of progress
_MOST_CALLS: Final = 32  # each holds a thread; one courier needs one call, and health checks one
_LONGEST_FRAME: Final = LONGEST_ASKING + 1024  # what is a little too long, we refuse ourselves
_LONGEST_PATH: Final = 100  # bytes; the kernel takes 107, and gRPC cuts what is longer
_ORDER: Final = "ORDER_MALFORMED"
_parsing = threading.Lock()  # JSON takes 25 times its bytes while it is read: one at a time
_log = getLogger("callosum.site")


@dataclass(frozen=True, slots=True)
class Answer:
    """A report and its arrays as npy bytes, in as many parts as is convenient."""

    report: str
    arrays: Sequence[tuple[str, Sequence[bytes | memoryview]]] = ()

    @property
    def sizes(self) -> Sizes:
        """Names and bytes of the arrays."""
        return tuple((name, sum(len(part) for part in parts)) for name, parts in self.arrays)

    @property
    def size(self) -> int:
        """Bytes of text and arrays together."""
        return len(self.report.encode()) + sum(size for _, size in self.sizes)


Said = float | Literal["send"] | Answer  # seconds of work so far; "send the arrays"; the end
Handler = Callable[["Asking"], Generator[Said, None, None]]


class Asking:
    """What was asked: a sealed order, announced arrays, and these once `"send"` was said.

    A handler goes on after its `Answer` only if the other end confirms that it has all of it;
    otherwise its generator is closed.
    """

    def __init__(self, frames: Iterator[bytes]) -> None:
        frame = next(frames, b"")
        if len(frame) > LONGEST_ASKING:
            raise Refusal(_ORDER, f"its header has {len(frame):,} bytes")
        with _parsing:
            fields = read_header(frame, _ORDER)
            self.sealed = Sealed(
                text_of(fields, "text", _ORDER), text_of(fields, "signature", _ORDER)
            )
            if len(self.sealed.text) > LONGEST_ORDER:
                raise Refusal(_ORDER, f"its text has {len(self.sealed.text):,} characters")
            self.sizes: Sizes = sizes_of(fields, _ORDER)
        self.unread = self.size
        self._frames = frames

    @property
    def size(self) -> int:
        """Bytes of all arrays together."""
        return sum(size for _, size in self.sizes)

    def arrays(self) -> Iterator[tuple[str, bytes]]:
        """Each array's npy bytes as they arrive; `Refusal` if they are not as announced."""
        return gather(self.sizes, self._chunks(), _ORDER)

    def confirmed(self, answer: Answer) -> None:
        """Wait for the other end to say that it has all of `answer`, or `Refusal`.

        An answer that came before all arrays were read finds the rest of them under way.
        """
        sent = sum(size for _, size in answer.sizes)
        for frame in self._chunks():
            if frame == header(received=sent):
                return
            if self.unread < 0:
                break
        raise Refusal(_ORDER, f"{sent} bytes of a report were sent and not confirmed")

    def _chunks(self) -> Iterator[bytes]:
        for frame in self._frames:
            self.unread -= max(1, len(frame))  # nothing, for ever, is too much as well
            yield frame


class Listener:
    """A running server; `address` is what `ask` takes."""

    def __init__(
        self, server: grpc.Server, vitality: Any, address: str, socket: Path | None
    ) -> None:
        self.address = address
        self._server, self._health, self._socket = server, vitality, socket

    def stop(self, grace_s: float) -> None:
        """Take no more askings, give those under way `grace_s`, then let go of the address."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)


def serve_link(
    handler: Handler,
    *,
    socket: Path | None = None,
    listen: str | None = None,
    tls: TlsFiles | None = None,
    stall_s: float = STALL_S,
) -> Listener:
    """Answer askings by `handler`, each in a thread, at `socket` or at `listen` ("host:port").

    Raises
    ------
    SettingError
        If there is not exactly one address, if it cannot be used, or TCP is to do without TLS.
    FolderError
        If another agent serves the socket.
    """
    server = grpc.server(
        ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="link"),
        options=[
            ("grpc.max_receive_message_length", _LONGEST_FRAME),  # unpacked, if it is packed
            ("grpc.so_reuseport", 0),  # a second agent must fail, not take every other order
            ("grpc.keepalive_time_ms", 20_000),  # finds a courier that is gone without a word
        ],
        maximum_concurrent_rpcs=_MOST_CALLS,
    )

    def converse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        return _converse(handler, requests, context, stall_s)

    methods = {"Answer": grpc.stream_stream_rpc_method_handler(converse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    vitality = health.HealthServicer()
    vitality.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(vitality, server)
    if (socket is None) == (listen is None):
        raise SettingError("an agent listens at one address: a Unix socket or host:port")
    address = _bind(server, socket) if socket is not None else _bind_tcp(server, str(listen), tls)
    server.start()
    return Listener(server, vitality, address, socket)


def _converse(
    handler: Handler, requests: Iterator[bytes], context: grpc.ServicerContext, stall_s: float
) -> Iterator[bytes]:
    """One conversation, ended where the other end neither reads nor writes on."""
    with closing(Watch(context.cancel, stall_s)) as watch:
        for frame in _said(handler, _received(requests, watch), context):
            watch.touch()
            yield frame
            watch.rest()


def _said(
    handler: Handler, frames: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[bytes]:
    """All that the agent says. Of what goes wrong, no more than a code."""
    begun = False  # the report: after its header only chunks may follow
    try:
        asking = Asking(frames)
        with closing(handler(asking)) as saying:
            for said in saying:
                begun = isinstance(said, Answer)
                yield from _spoken(said)
                if isinstance(said, Answer):
                    asking.confirmed(said)
        return
    except grpc.RpcError:
        return  # the other end is gone; what it asked for is kept for its next asking
    except Refusal as refusal:
        _log.warning("an asking ends with %s", refusal)
        code = refusal.code
    except Exception:  # noqa: BLE001  its text is not for the other end
        _log.exception("an asking failed")
        code = "SITE_FAILED"
    if begun:  # a header would be read as a chunk
        context.abort(grpc.StatusCode.ABORTED, code)
    yield header(refusal=code)


def _spoken(said: Said) -> Iterator[bytes]:
    if isinstance(said, Answer):
        yield header(report=said.report, arrays=said.sizes)
        yield from chunks(part for _, parts in said.arrays for part in parts)
    elif said == "send":
        yield header(send=True)
    else:
        yield header(working=round(said, 1))


def _received(requests: Iterator[bytes], watch: Watch) -> Iterator[bytes]:
    while True:
        watch.touch()
        frame = next(requests, None)
        watch.rest()
        if frame is None:
            return
        yield frame


def _bind(server: grpc.Server, path: Path) -> str:
    path = path.absolute()
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise SettingError(
            f"{path} is too long for a socket: {len(os.fsencode(path))} bytes, at most "
            f"{_LONGEST_PATH}; name a shorter one with --socket"
        )
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o750)  # the courier's group comes in, whatever the umask
        _refuse_second(path)
        with _umask(0o117):  # 0660 from the first moment on
            server.add_insecure_port(unix_address(path))
    except (OSError, RuntimeError) as error:
        raise SettingError(f"{path} cannot be listened at: {error}") from None
    return unix_address(path)


def _refuse_second(path: Path) -> None:
    """A socket that a crash left behind may be replaced; one that is answered may not."""
    if not path.exists():
        return
    if not path.is_socket():
        raise FolderError(f"{path} is no socket; remove it or name another with --socket")
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise SettingError(f"{path} cannot be tried: {error}") from None
    raise FolderError(f"another agent is serving {path}")


def _bind_tcp(server: grpc.Server, address: str, tls: TlsFiles | None) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SettingError(f'{address!r} names no address; "127.0.0.1:9443" would')
    if tls is None:
        raise SettingError(f"an agent listens at {address} only with certificates")
    credentials = grpc.ssl_server_credentials(
        [(read_file(tls.key), read_file(tls.certificate))],
        root_certificates=read_file(tls.peer),
        require_client_auth=True,
    )
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingError(f"{address} cannot be listened at: {error}") from None
    return f"{host}:{bound}"


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
