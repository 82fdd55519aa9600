"""Courier and agent reach each other, whatever else goes wrong, and a hostile end gets nowhere."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from client.kit import TlsFiles
from client.link.caller import ask, unix_address
from client.link.frames import CHUNK, METHOD, MOST_BYTES, SERVICE, chunks, gather, header
from client.link.listener import Answer, Asking, Handler, serve_link
from common.errors import FolderError, Refusal, SettingError
from common.protocol.signing import Sealed

ROOT = Path(__file__).parents[3]
SEALED = Sealed("an order", "ab" * 64)
SECRET = "/data/hospital/sub-0042_T1w.nii.gz"
ANNOUNCED = {"text": SEALED.text, "signature": SEALED.signature}
LOOPBACK = ip_address("127.0.0.1")
ARRAYS = [("a", b"\x01" * 3), ("empty", b""), ("big", os.urandom(2 * CHUNK + 5)), ("b", b"\x02")]


def echo(asking: Asking) -> Iterator[Any]:
    """Says back what it is given."""
    yield "send"
    arrays = list(asking.arrays())
    yield Answer(asking.sealed.text, [(name, [data]) for name, data in arrays])


@pytest.fixture
def served(tmp_path) -> Iterator[Callable[..., str]]:
    """`served(handler)` starts an agent's end and gives its address."""
    listeners = []

    def serve(handler: Handler, **more: Any) -> str:
        path = tmp_path / "run" / f"{len(listeners)}.sock"
        listeners.append(serve_link(handler, socket=path, **more))
        return unix_address(path)

    yield serve
    for listener in listeners:
        listener.stop(0)


@contextmanager
def raw_call(address: str, frames: Iterator[bytes]) -> Iterator[Any]:
    """The link without the courier's manners."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(METHOD)(frames, timeout=20)
        yield call
        call.cancel()


def said_to(address: str, *frames: bytes) -> list[dict[str, Any]]:
    """The headers that the agent answers to these frames."""
    with raw_call(address, iter(frames)) as call:
        return [json.loads(frame) for frame in call]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 40), st.integers(CHUNK - 3, 2 * CHUNK + 3)), max_size=8))
def test_arrays_come_out_of_chunks_as_they_went_in(lengths):
    """Arrays of any size share chunks; where one ends must not depend on where a chunk does."""
    source = random.Random(len(lengths))
    arrays = [(str(n), source.randbytes(length)) for n, length in enumerate(lengths)]
    cut = list(chunks(data for _, data in arrays))
    assert all(len(chunk) == CHUNK for chunk in cut[:-1])
    sizes = tuple((name, len(data)) for name, data in arrays)
    assert list(gather(sizes, iter(cut), "ORDER_MALFORMED")) == arrays


def test_order_and_report_arrive_as_they_were_sent(served):
    """Not one byte may differ: the bits of the final model depend on it."""
    text, arrays = ask(served(echo), None, SEALED, ARRAYS, 5)
    assert text == SEALED.text
    assert arrays == ARRAYS


def test_courier_imports_neither_torch_nor_the_agent():
    """The courier runs for every site in little memory, and has nothing that could touch data."""
    code = (
        "import sys, client.link.caller\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('torch', 'flwr') or m in "
        "('client.service.agent', 'client.link.listener', 'client.service.daemon', 'client.site')])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_order_is_declined_before_any_array_is_sent(served):
    """A site that declines, as while it is paused, must not first be sent a gigabyte."""

    def decline(asking: Asking) -> Iterator[Any]:
        yield Answer(f"declined {asking.size}")

    told = threading.Event()

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[["x", 50 << 20]])
        told.wait(10)
        yield header(received=0)

    with raw_call(served(decline), frames()) as call:
        assert json.loads(next(call))["report"] == f"declined {50 << 20}"
        told.set()
        assert list(call) == []


def test_courier_sends_no_array_before_it_is_asked_to(served, monkeypatch):
    """The other half of the same promise; and arrays wait where they are, while orders queue."""
    times: list[str] = []

    def admit_slowly(asking: Asking) -> Iterator[Any]:
        yield 0.0
        time.sleep(0.3)  # long enough for a courier that does not wait to be caught
        times.append("admitted")
        yield from echo(asking)

    def noted(parts: Any) -> Iterator[bytes]:
        times.append("sending")
        return chunks(parts)

    address = served(admit_slowly)
    monkeypatch.setattr("client.link.caller.chunks", noted)
    assert ask(address, None, SEALED, ARRAYS, 5)[1] == ARRAYS
    assert times == ["admitted", "sending"]


@pytest.mark.parametrize("read", [0, 1, 3])
def test_report_may_come_before_all_arrays_were_read(served, read, monkeypatch):
    """An order that proves wrong half-way is refused there and then, and the courier hears it."""
    ends, sent = [], []

    def counted(parts: Any) -> Iterator[bytes]:
        for chunk in chunks(parts):
            sent.append(len(chunk))
            yield chunk

    monkeypatch.setattr("client.link.caller.chunks", counted)

    def half(asking: Asking) -> Iterator[Any]:
        yield "send"
        arrays = asking.arrays()
        for _ in range(read):
            next(arrays)
        yield Answer("declined", [("why", [b"because"])])
        ends.append("confirmed")

    arrays = [(str(n), bytes(n * CHUNK + 7)) for n in range(20)]
    assert ask(served(half), None, SEALED, arrays, 0) == ("declined", [("why", b"because")])
    assert ends == ["confirmed"]
    assert sum(sent) < sum(len(data) for _, data in arrays)  # the rest stayed where it was


def test_report_without_arrays_is_confirmed_at_once(served):
    """A refusal needs no arrays of the order; neither end may wait for the other to send them."""

    def decline(asking: Asking) -> Iterator[Any]:
        yield Answer("declined")

    began = time.monotonic()
    assert ask(served(decline), None, SEALED, ARRAYS, 0) == ("declined", [])
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xfe",
        b"no JSON",
        b"[" * 100_000,
        b"[1, 2]",
        b"{}",
        header(text=1, signature="", arrays=[]),
        header(text="", arrays=[]),
        header(text="", signature="", arrays={}),
        header(text="", signature="", arrays=[1]),
        header(text="", signature="", arrays=[["a"]]),
        header(text="", signature="", arrays=[["a", 1, 2]]),
        header(text="", signature="", arrays=[[1, 1]]),
        header(text="", signature="", arrays=[["", 1]]),
        header(text="", signature="", arrays=[["a" * 1001, 1]]),
        header(text="", signature="", arrays=[["a", "1"]]),
        header(text="", signature="", arrays=[["a", 1.0]]),
        header(text="", signature="", arrays=[["a", True]]),
        header(text="", signature="", arrays=[["a", -1]]),
        header(text="", signature="", arrays=[["a", 2**63]]),
        b'{"text": "", "signature": "", "arrays": [["a", ' + b"9" * 5000 + b"]]}",
        header(text="", signature="", arrays=[["a", MOST_BYTES], ["b", 1]]),
        header(text="", signature="", arrays=[["a", 1], ["a", 1]]),
        header(text="", signature="", arrays=[[str(n), 0] for n in range(10_001)]),
    ],
    ids=lambda frame: frame[:60].decode(errors="replace"),
)
def test_malformed_header_is_a_code_and_the_next_asking_works(served, frame):
    """Whoever reaches the socket can send anything; it must cost the agent nothing."""
    address = served(echo)
    assert said_to(address, frame) == [{"refusal": "ORDER_MALFORMED"}]
    assert ask(address, None, SEALED, ARRAYS, 5)[1] == ARRAYS


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [bytes(CHUNK)],
        [bytes(CHUNK), bytes(4)],
        [bytes(CHUNK), bytes(6)],
        [bytes(5), bytes(CHUNK)],
        [bytes(CHUNK - 1), bytes(6)],
        [bytes(CHUNK + 5)],
        [b"", bytes(CHUNK), bytes(5)],
    ],
    ids=lambda sent: "+".join(str(len(chunk)) for chunk in sent) or "nothing",
)
def test_arrays_that_are_not_as_announced_are_refused(served, sent):
    """Truncated, too long, in drops: the handler never sees arrays that are not whole."""
    seen = []

    def collect(asking: Asking) -> Iterator[Any]:
        yield "send"
        seen.append(list(asking.arrays()))
        yield Answer("")

    frames = [header(**ANNOUNCED, arrays=[["x", CHUNK + 5]]), *sent]
    assert said_to(served(collect), *frames) == [{"send": True}, {"refusal": "ORDER_MALFORMED"}]
    assert seen == []


def test_endless_stream_ends_with_the_announced_bytes(served):
    """What comes after the announced arrays is never stored, and never taken for a confirmation."""
    confirmed = []

    def answer(asking: Asking) -> Iterator[Any]:
        yield from echo(asking)
        confirmed.append(True)

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[["x", CHUNK]])
        while True:
            yield bytes(CHUNK)

    with raw_call(served(answer), frames()) as call:
        with pytest.raises(grpc.RpcError) as failed:
            list(call)
        assert failed.value.code() is grpc.StatusCode.ABORTED
        assert failed.value.details() == "ORDER_MALFORMED"
    assert confirmed == []


def test_message_larger_than_a_chunk_may_be_is_not_taken(served):
    """gRPC's own limit stands: nobody makes the agent hold a message of a gigabyte."""
    address = served(echo)
    with raw_call(address, iter([bytes(5 << 20)])) as call:
        with pytest.raises(grpc.RpcError) as failed:
            list(call)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ask(address, None, SEALED, ARRAYS, 5)[1] == ARRAYS


@pytest.fixture
def left():
    """A handler like `echo`, and what became of each conversation with it."""
    ends: list[str] = []
    ended = threading.Event()

    def handler(asking: Asking) -> Iterator[Any]:
        end = "left"
        try:
            yield from echo(asking)
            end = "confirmed"
        finally:
            ends.append(end)
            ended.set()

    handler.ends, handler.ended = ends, ended
    return handler


def test_peer_that_stops_in_mid_transfer_is_let_go(served, left):
    """A courier that hangs must not hold a thread and half an order for ever."""
    hold = threading.Event()

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[["x", 3 * CHUNK]])
        yield bytes(CHUNK)
        hold.wait(20)

    address = served(left, stall_s=0.3)
    with raw_call(address, frames()) as call, pytest.raises(grpc.RpcError) as ended:
        list(call)
    assert ended.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED  # our own patience
    assert left.ended.wait(5)
    assert left.ends == ["left"]
    hold.set()
    assert ask(address, None, SEALED, ARRAYS, 5)[1] == ARRAYS


def test_slow_peer_that_goes_on_is_not_let_go(served):
    """The limit is for no progress at all: a slow disk or a throttled container is no fault."""

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[["x", 6 * CHUNK]])
        for _ in range(6):
            time.sleep(0.15)
            yield bytes(CHUNK)
        yield header(received=6 * CHUNK)

    with raw_call(served(echo, stall_s=0.6), frames()) as call:
        frames_back = list(call)
    assert len(frames_back) == 2 + 6


def test_peer_that_does_not_read_the_report_is_let_go(served):
    """A report of gigabytes waits in memory while it is sent; it must not wait for ever."""
    ends: list[BaseException] = []
    ended = threading.Event()

    def answer(asking: Asking) -> Iterator[Any]:
        try:
            yield Answer("", [("x", [bytes(64 << 20)])])
        except GeneratorExit as end:
            ends.append(end)
            ended.set()
            raise

    hold = threading.Event()

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[])
        hold.wait(20)

    with raw_call(served(answer, stall_s=0.3), frames()) as call:
        next(call)  # its header, and then no more
        assert ended.wait(5)
    hold.set()


@pytest.mark.parametrize("read", [1, 2, 4], ids=["send", "header", "all but one"])
def test_report_counts_as_handed_over_only_when_all_of_it_was_confirmed(served, left, read):
    """The ledger closes an order on this; a courier that dies early must be able to ask again."""
    go = threading.Event()

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[["x", 3 * CHUNK]])
        yield from [bytes(CHUNK)] * 3
        go.wait(10)

    address = served(left)
    with raw_call(address, frames()) as call:
        for _ in range(read):
            next(call)
    go.set()
    assert left.ended.wait(5)
    assert left.ends == ["left"]
    ask(address, None, SEALED, ARRAYS, 5)
    assert left.ends == ["left", "confirmed"]


@pytest.mark.parametrize("received", [0, 3 * CHUNK - 1, None, "all"])
def test_wrong_confirmation_is_none(served, left, received):
    """Half a report is no report."""

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[["x", 3 * CHUNK]])
        yield from [bytes(CHUNK)] * 3
        yield header(received=received)

    with raw_call(served(left), frames()) as call, pytest.raises(grpc.RpcError):
        list(call)
    assert left.ended.wait(5)
    assert left.ends == ["left"]


@pytest.mark.parametrize("moment", ["before", "in the report", "after"])
def test_text_of_an_exception_never_crosses(served, caplog, moment):
    """gRPC would send it along; it holds paths and names of people."""

    def broken(asking: Asking) -> Iterator[Any]:
        if moment == "before":
            raise ValueError(SECRET)
        parts = [b"1"] if moment == "after" else _Broken([b"1"])
        yield Answer("report", [("x", parts)])
        raise ValueError(SECRET)

    def frames() -> Iterator[bytes]:
        yield header(**ANNOUNCED, arrays=[])
        yield header(received=1)

    said: list[bytes] = []
    details = ""
    with raw_call(served(broken), frames()) as call:
        try:
            said.extend(call)
        except grpc.RpcError as error:
            details = f"{error.code()} {error.details()} {error}"
    assert b"sub-0042" not in b"".join(said)
    assert "sub-0042" not in details
    assert "sub-0042" in caplog.text  # the site itself can find out
    assert "SITE_FAILED" in b"".join(said).decode() + details


class _Broken(list):
    """Parts whose length can be told, and which then cannot be read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        if self.reads > 1:
            raise ValueError(SECRET)
        return super().__iter__()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([header(refusal="STUDY_UNKNOWN")], "STUDY_UNKNOWN"),
        ([header(refusal="something else")], "REPORT_MALFORMED"),
        ([header(refusal=1)], "REPORT_MALFORMED"),
        ([b"no JSON"], "REPORT_MALFORMED"),
        ([], "REPORT_MALFORMED"),
        ([header(working=1.0)], "REPORT_MALFORMED"),
        ([header(report="text")], "REPORT_MALFORMED"),
        ([header(report="text", arrays=[["x", -1]])], "REPORT_MALFORMED"),
        ([header(report="text", arrays=[["x", 3]])], "REPORT_MALFORMED"),
        ([header(report="text", arrays=[["x", 3]]), b"1234"], "REPORT_MALFORMED"),
    ],
    ids=str,
)
def test_senseless_agent_ends_in_a_code(tmp_path, frames, code):
    """Another program on the socket, or another version: said at once, not asked for ever."""

    def converse(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        next(requests)
        yield from frames

    method = grpc.stream_stream_rpc_method_handler(converse)
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = grpc.method_handlers_generic_handler(SERVICE, {"Answer": method})
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(unix_address(tmp_path / "a.sock"))
    server.start()
    with pytest.raises(Refusal) as refused:
        ask(unix_address(tmp_path / "a.sock"), None, SEALED, ARRAYS, 30)
    server.stop(0).wait()
    assert refused.value.code == code


def test_agent_that_works_long_is_waited_for(served):
    """Training lasts hours: what is limited is silence, and a working agent is not silent."""

    def work(asking: Asking) -> Iterator[Any]:
        yield "send"
        list(asking.arrays())
        for step in range(12):
            time.sleep(0.1)
            yield 0.1 * step
        yield Answer("done")

    assert ask(served(work), None, SEALED, ARRAYS, 0, silence_s=0.6) == ("done", [])


def test_agent_that_never_says_a_word_is_given_up(served):
    """A process that hangs from the start accepts connections for as long as its kernel lives."""
    hold = threading.Event()

    def hang(asking: Asking) -> Iterator[Any]:
        hold.wait(20)
        yield Answer("")

    began = time.monotonic()
    with pytest.raises(Refusal, match="NO_AGENT"):
        ask(served(hang), None, SEALED, ARRAYS, 0, silence_s=0.3)
    assert time.monotonic() - began < 5
    hold.set()


def test_absent_agent_is_given_up_when_patience_ends(tmp_path):
    """The coordinator learns which site has no agent, instead of waiting for the round's limit."""
    began = time.monotonic()
    with pytest.raises(Refusal) as refused:
        ask(unix_address(tmp_path / "none.sock"), None, SEALED, [], 0.5)
    assert refused.value.code == "NO_AGENT"
    assert 0.5 <= time.monotonic() - began < 3


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test, in whatever state they are."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def agent_process(processes) -> Callable[..., Any]:
    """`agent_process(socket, seconds)` runs `plain_agent.py` and waits until it listens."""

    def start(socket: Path, seconds: float = 0.0) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("plain_agent.py")
        process = subprocess.Popen(
            [sys.executable, str(script), str(socket), str(seconds)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    return start


@contextmanager
def asking_aside(*things: Any, **more: Any) -> Iterator[list[Any]]:
    """`ask` in a thread; what it returns or raises stands in the list at the end."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(ask(*things, **more))
        except Exception as error:  # noqa: BLE001
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield found
    thread.join(30)


def test_killed_agent_is_asked_again_when_it_is_back(tmp_path, agent_process):
    """`kill -9` in mid-work costs the courier a wait; the order goes to the agent's successor."""
    socket = tmp_path / "agent.sock"
    first = agent_process(socket, 60)
    with asking_aside(unix_address(socket), None, SEALED, ARRAYS, 30) as found:
        assert first.stdout.readline() == "arrived\n"
        first.kill()
        first.wait()
        assert socket.exists()  # left behind, and replaced by the next
        second = agent_process(socket)
        assert second.stdout.readline() == "arrived\n"
    assert found == [(SEALED.text, ARRAYS)]


def test_agent_that_hangs_is_told_from_one_that_works(tmp_path, agent_process):
    """A stopped process keeps its socket open; only its silence shows."""
    socket = tmp_path / "agent.sock"
    agent = agent_process(socket, 0.4)
    more = {"silence_s": 0.5}
    with asking_aside(unix_address(socket), None, SEALED, ARRAYS, 30, **more) as found:
        assert agent.stdout.readline() == "arrived\n"
        agent.send_signal(signal.SIGSTOP)
        time.sleep(1.0)  # longer than the silence that is borne
        agent.send_signal(signal.SIGCONT)
        assert agent.stdout.readline() == "arrived\n"  # asked once more
    assert found == [(SEALED.text, ARRAYS)]


def test_socket_is_for_the_group_and_nobody_else(tmp_path):
    """Agent and courier are two users who share a group; others must not even connect."""
    path = tmp_path / "run" / "agent.sock"
    with listening(echo, socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert not path.exists()


def test_second_agent_does_not_take_over_the_socket(tmp_path):
    """gRPC would silently replace it, and each agent would get every other order."""
    path = tmp_path / "agent.sock"
    with listening(echo, socket=path):
        with pytest.raises(FolderError, match="another agent is serving"):
            serve_link(echo, socket=path)
        assert ask(unix_address(path), None, SEALED, ARRAYS, 0)[1] == ARRAYS


def test_path_that_the_kernel_would_cut_is_refused_with_a_remedy(tmp_path):
    """Beyond 107 bytes the error speaks of an invalid argument, and nobody knows which."""
    with pytest.raises(SettingError, match="too long for a socket.*--socket"):
        serve_link(echo, socket=tmp_path / ("x" * 100) / "agent.sock")


def test_file_in_place_of_the_socket_is_kept(tmp_path):
    """A mistyped --socket must not cost anyone their file."""
    path = tmp_path / "phenotypes.tsv"
    path.write_text("age")
    with pytest.raises(FolderError, match="is no socket"):
        serve_link(echo, socket=path)
    assert path.read_text() == "age"


@contextmanager
def listening(handler: Handler, **more: Any) -> Iterator[Any]:
    listener = serve_link(handler, **more)
    try:
        yield listener
    finally:
        listener.stop(0)


def write_certificate(folder: Path, name: str) -> None:
    """A self-signed certificate and its key, as a kit holds them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    names = [x509.DNSName("localhost"), x509.DNSName("agent"), x509.IPAddress(LOOPBACK)]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("agent", "courier", "stranger"):
        write_certificate(folder, name)
    return folder


def tls(folder: Path, own: str, peer: str) -> TlsFiles:
    return TlsFiles(
        certificate=folder / f"{own}.crt", key=folder / f"{own}.key", peer=folder / f"{peer}.crt"
    )


def test_tcp_is_for_the_one_courier_and_the_one_agent(certificates):
    """Between containers whoever is in the network can connect; the pinned key decides."""
    end = tls(certificates, "agent", "courier")
    with listening(echo, listen="127.0.0.1:0", tls=end) as listener:
        address = listener.address
        courier = tls(certificates, "courier", "agent")
        assert ask(address, courier, SEALED, ARRAYS, 5)[1] == ARRAYS
        for stranger in (
            tls(certificates, "stranger", "agent"),  # another key
            tls(certificates, "courier", "stranger"),  # another agent than the courier's
        ):
            with pytest.raises(Refusal, match="NO_AGENT"):
                ask(address, stranger, SEALED, [], 0)
        with grpc.insecure_channel(address) as plain:
            call = plain.stream_stream(METHOD)(iter([header(**ANNOUNCED, arrays=[])]), timeout=5)
            with pytest.raises(grpc.RpcError):
                next(call)


@pytest.mark.parametrize(
    ("address", "match"),
    [
        (":9443", "names no address"),
        ("9443", "names no address"),
        ("localhost", "names no address"),
        ("localhost:https", "names no address"),
        ("192.0.2.1:9443", "cannot be listened at"),
    ],
)
def test_address_to_listen_at_is_named_in_full(certificates, address, match):
    """Nothing listens on all interfaces because somebody left something out."""
    with pytest.raises(SettingError, match=match):
        serve_link(echo, listen=address, tls=tls(certificates, "agent", "courier"))


def test_tcp_without_certificates_does_not_exist(tmp_path):
    """Neither end has an option for it, so no site can be talked into it."""
    with pytest.raises(SettingError, match="certificates"):
        serve_link(echo, listen="127.0.0.1:0")
    with pytest.raises(SettingError, match="certificates"):
        ask("127.0.0.1:9443", None, SEALED, [], 0)
    with pytest.raises(SettingError, match="one address"):
        serve_link(echo)


def test_taken_port_is_said(certificates):
    """gRPC would share it, and each agent would get every other order."""
    end = tls(certificates, "agent", "courier")
    with (
        listening(echo, listen="127.0.0.1:0", tls=end) as listener,
        pytest.raises(SettingError, match="cannot be listened at"),
    ):
        serve_link(echo, listen=listener.address, tls=end)


def test_health_is_that_of_grpc(tmp_path):
    """Kubernetes, systemd watchdogs and grpc-health-probe all ask in the same way."""
    path = tmp_path / "agent.sock"
    with listening(echo, socket=path) as listener, grpc.insecure_channel(unix_address(path)) as c:
        stub = health_pb2_grpc.HealthStub(c)
        for service in ("", "callosum.Agent"):
            found = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        watched = stub.Watch(health_pb2.HealthCheckRequest(service="callosum.Agent"))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        stopping = threading.Thread(target=listener.stop, args=(5,))
        stopping.start()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watched.cancel()
        stopping.join()


@pytest.mark.slow
def test_arrays_are_held_once_at_each_end(tmp_path, agent_process):
    """400 MB of arrays, one of them 200 MB: no end ever needs twice that."""
    socket = tmp_path / "agent.sock"
    agent_process(socket)
    code = (
        "import sys, time\n"
        "sys.path.insert(0, 'tests/client/link')\n"
        "from plain_agent import peak_bytes\n"
        "from client.link.caller import ask\n"
        "from common.protocol.signing import Sealed\n"
        f"address = {unix_address(socket)!r}\n"
        "idle = [peak_bytes(), int(ask(address, None, Sealed('peak', ''), [], 5)[0])]\n"
        "arrays = [('one', b'1' * 200_000_000), *((str(n), b'2' * 1_000_000) for n in range(200))]\n"
        "began = time.monotonic()\n"
        "text, back = ask(address, None, Sealed('peak', ''), arrays, 5)\n"
        "seconds = time.monotonic() - began\n"
        "assert back == arrays\n"
        "print(peak_bytes() - idle[0], int(text) - idle[1], seconds)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    courier, agent, seconds = found.stdout.split()
    print(f"courier {int(courier) / 1e6:.0f} MB (two copies: asked and answered), "
          f"agent {int(agent) / 1e6:.0f} MB, {800 / float(seconds):.0f} MB/s")  # fmt: skip
    assert int(courier) < 2 * 400e6 * 1.15
    assert int(agent) < 400e6 * 1.15
