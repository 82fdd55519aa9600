"""Whoever sends to an agent: huge headers, arrays that no order brings, studies that fill memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.authority.consent import consent
from client.data.cohort import empty_cohort
from client.learning.linear import features_width, regional_features
from client.link.caller import ask, unix_address
from client.link.frames import LONGEST_ASKING, METHOD, Sizes, header
from client.service.order_arrays import check_announced, expected
from client.site import Policy, load_site
from common.errors import Refusal, SettingError
from common.network.buildable import check_buildable
from common.network.building import arrays_of, build
from common.network.size import LARGEST_NETWORK, LARGEST_STEP_GB, Limits, outline
from common.protocol.orders import EMPTY, Order
from common.protocol.signing import LONGEST_ORDER, Sealed, read_envelope, seal
from common.protocol.wire import npy_bytes
from common.study import load_study
from tests.conftest import BRAINS, FEATURES, overridden

ROOT = Path(__file__).parents[2]


def order(study: Any, kind: str, **more: Any) -> Order:
    about = {"study": study.digest, "run": "ab" * 32, "site": "alpha", "arrays": EMPTY}
    return Order.model_validate({"kind": kind, **about, **more})


def announced(arrays: dict[str, np.ndarray]) -> Sizes:
    return tuple((name, len(npy_bytes(array))) for name, array in arrays.items())


def refused(agent: Any, of: Order, sizes: Sizes) -> str:
    """The code with which these arrays are not fetched, or nothing."""
    try:
        check_announced(of, sizes, expected(of, agent.study, agent.cohort))
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.fixture(scope="module")
def agent(module_federation: Callable[..., Any]) -> Any:
    return module_federation().agent("alpha")


def test_arrays_of_every_kind_of_order_are_let_in(agent: Any) -> None:
    """A check that refuses what belongs to an order would end every run."""
    network = build(agent.study, seed=3)
    whole = announced(arrays_of(network))
    settled = tuple(each for each in whole if ".standardise." in each[0])
    task = {"task": "own", "init": "pretrained", "method": "full"}
    for kind, sizes, more in (
        ("train", whole, {}),
        ("train", whole[:2], {}),  # the others are held here
        ("evaluate", whole, {}),
        ("finetune", whole, task),
        ("settle", settled, {}),
        ("census", (), {}),
        ("linear", (), {}),
    ):
        assert refused(agent, order(agent.study, kind, **more), sizes) == "", kind


def linear(features: int, intercepts: int = 1) -> dict[str, np.ndarray]:
    return {
        "linear/age/centre": np.zeros(features),
        "linear/age/scale": np.ones(features),
        "linear/age/coefficients": np.zeros((features, 1)),
        "linear/age/intercepts": np.zeros(intercepts),
    }


def test_a_linear_model_is_as_large_as_the_sites_measures(agent: Any) -> None:
    """20 million intercepts took 6.5 GB, and were read as a model."""
    of = order(agent.study, "evaluate", model="x-linear")
    assert features_width(agent.cohort) == regional_features(agent.cohort).shape[1] == 4
    assert refused(agent, of, announced(linear(4))) == ""
    assert refused(agent, of, announced(linear(5))) == "NO_DATA"  # of another site's measures
    many = (("linear/age/intercepts", 160_000_128),)
    assert refused(agent, of, many) == "ORDER_MALFORMED"
    assert refused(agent, of, (("linear/other/centre", 160),)) == "ORDER_MALFORMED"


def test_the_width_of_a_volumes_measures_is_known_without_reading_it(
    brains: Callable[..., Any],
) -> None:
    """Otherwise every asking would read all scans before it is refused."""
    cohort = brains().agent("amber").cohort
    assert features_width(cohort) == regional_features(cohort).shape[1]


@pytest.mark.parametrize(
    ("kind", "more", "sizes"),
    [
        ("train", {}, [["backbone.layers.0.weight", 1 << 34]]),
        ("train", {}, [["backbone.layers.0.weight", 10]]),
        ("train", {}, [["another", 100]]),
        ("train", {}, [["linear/age/centre", 160]]),
        ("evaluate", {}, [["another", 1 << 34]]),
        ("settle", {}, [["backbone.layers.0.weight", 224]]),
        ("census", {}, [["backbone.layers.0.weight", 224]]),
        ("linear", {}, [["linear/age/centre", 160]]),
        ("finetune", {"task": "own", "init": "scratch", "method": "full"}, [["another", 1 << 34]]),
        ("judge", {"task": "own", "init": "", "method": "linear"}, [["another", 1 << 34]]),
        ("explain", {"task": "own", "init": "pretrained", "method": "full"}, [["another", 9]]),
    ],
)
def test_what_an_order_may_not_bring_is_not_fetched(
    agent: Any, kind: str, more: dict[str, str], sizes: list[list[Any]]
) -> None:
    """Each byte that is asked for is held in memory before anybody looks at it."""
    found = tuple((name, size) for name, size in sizes)
    assert refused(agent, order(agent.study, kind, **more), found) == "ORDER_MALFORMED"


AGENT = """
import sys, threading
from pathlib import Path
from client.link.listener import Answer, serve_link
from common.errors import Refusal
from common.protocol.signing import unseal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
held = []
def answer(asking):
    held.append(asking)  # as an agent holds it while it thinks
    keys = [Ed25519PrivateKey.generate().public_key()]
    from common.protocol.signing import read_envelope
    try:
        read_envelope(asking.sealed.text)
    finally:
        unseal(asking.sealed, keys, now=0.0)
    yield Answer("")
serve_link(answer, socket=Path(sys.argv[1]))
print("ready", flush=True)
threading.Event().wait()
"""


def peak_mb(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def headers(size: int) -> list[bytes]:
    """Headers of about `size` bytes, each of which takes many times that when it is parsed."""
    zeros = ",".join("0" * (size // 2))
    lists = ",".join(["[]"] * (size // 3))
    names = ",".join(f'["{n}",1]' for n in range(size // 12))
    text = json.dumps('{"order":{"lineage":[' + zeros + "]}}")
    return [
        f'{{"text":"","signature":"","arrays":[{zeros}]}}'.encode(),
        f'{{"text":"","signature":"","other":[{lists}],"arrays":[]}}'.encode(),
        f'{{"text":"","signature":"ab","arrays":[{names}]}}'.encode(),
        f'{{"text":{text},"signature":"ab","arrays":[]}}'.encode(),
        ("[" * size).encode(),
        ('{"a":' * (size // 5)).encode(),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [3_900_000, 1_000_000, 250_000])
def test_unsigned_askings_at_once_take_little_memory(tmp_path: Path, size: int) -> None:
    """32 askings of 3.9 MB each took the agent from 0.38 to 6.8 GB before any signature was seen."""
    socket = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, socket], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = peak_mb(process.pid)
        for said in headers(size):
            threads = [threading.Thread(target=_say, args=(socket, said)) for _ in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert peak_mb(process.pid) - before < 300
    finally:
        process.kill()
        process.wait()


def _say(socket: Path, said: bytes) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(unix_address(socket), options) as channel:
        try:
            list(channel.stream_stream(METHOD)(iter([said])))
        except grpc.RpcError:
            return


def test_a_header_longer_than_a_chunk_is_not_taken(tmp_path: Path) -> None:
    """gRPC's own limit would be four times that; packed headers are measured unpacked."""
    from client.link.listener import serve_link

    came: list[Any] = []

    def note(asking: Any) -> Iterator[Any]:
        came.append(asking)
        yield 0.0

    listener = serve_link(note, socket=tmp_path / "s")
    try:
        long = header(text=" " * 2 * LONGEST_ASKING, signature="", arrays=[])
        for packing in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with (
                grpc.insecure_channel(listener.address, compression=packing) as channel,
                pytest.raises(grpc.RpcError) as failed,
            ):
                list(channel.stream_stream(METHOD)(iter([long])))
            assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(Refusal, match="ORDER_MALFORMED"):  # the text alone is too long
            ask(listener.address, None, Sealed(" " * (LONGEST_ORDER + 1), ""), [], 0.0)
    finally:
        listener.stop(0)
    assert came == []


def test_a_courier_does_not_wait_for_an_agent_to_take_what_none_takes() -> None:
    """Refused by gRPC, it would ask again for ten minutes, and report that there is no agent."""
    many = [(f"{n:0100}", b"") for n in range(10_001)]
    with pytest.raises(Refusal, match="ORDER_MALFORMED"):
        ask("unix:/nowhere", None, Sealed("", ""), many, patience_s=600.0)


def test_an_envelope_that_is_wrong_in_many_places_is_told_in_few_words(agent: Any) -> None:
    """The text of a validation error repeats each wrong entry: megabytes for a log."""
    key = Ed25519PrivateKey.generate()
    sealed = seal(order(agent.study, "census"), key, code="0" * 64, now=0.0, lifetime_s=1.0)
    for place in ('"lineage":[', '"against":['):
        wrong = sealed.text.replace(place, place + ",".join(["0"] * 100_000))
        with pytest.raises(Refusal) as found:
            read_envelope(wrong)
        assert found.value.code == "ORDER_MALFORMED"
        assert len(str(found.value)) < 200
    with pytest.raises(Refusal, match="characters"):
        read_envelope(" " * (LONGEST_ORDER + 1))


LARGE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "hidden": (FEATURES, {"backbone.hidden": [65536, 65536]}, "4,296,015,884 numbers"),
    "eight layers": (FEATURES, {"backbone.hidden": [65536] * 8}, "numbers"),
    "channels": (BRAINS, {"backbone.channels": [4096, 4096]}, "numbers"),
    "classes": (
        FEATURES,
        {
            "backbone.hidden": [65536],
            "targets.stage": {"kind": "categorical", "classes": [f"c{n}" for n in range(1000)]},
            "targets.grade": {"kind": "categorical", "classes": [f"c{n}" for n in range(1000)]},
            "targets.kind": {"kind": "categorical", "classes": [f"c{n}" for n in range(1000)]},
            "targets.form": {"kind": "categorical", "classes": [f"c{n}" for n in range(1000)]},
            "objective.targets": ["stage", "grade", "kind", "form"],
        },
        "numbers",
    ),
    "rank": (
        FEATURES,
        {
            "backbone.hidden": [10_000, 10_000, 10_000],
            "finetuning": [
                {"name": "a", "target": "diagnosis", "methods": ["scratch/lora"], "rank": 1024}
            ],
        },
        r"finetuning\.0\.methods.*numbers",
    ),
    "width": (
        FEATURES,
        {
            "backbone.hidden": [5_000],
            "finetuning": [
                {"name": "a", "target": "diagnosis", "methods": ["scratch/adapters"], "width": 65536}
            ],
        },
        r"finetuning\.0\.methods.*numbers",
    ),
    "batch": (
        BRAINS,
        {"data.shape": [512, 512, 512], "pretraining.batch_size": 4096},
        "pretraining.batch_size.*GB",
    ),
    "batch of a task": (
        BRAINS,
        {
            "data.shape": [512, 512, 512],
            "finetuning": [{"name": "a", "target": "age", "batch_size": 4096}],
            "objective.targets": ["sex"],
        },
        "GB",
    ),
    "trainings": (
        FEATURES,
        {"finetuning": [{"name": "a", "target": "diagnosis", "repeats": 1000, "draws": 1000, "participants": [5]}]},
        "trainings",
    ),
    "grid": (
        FEATURES,
        {"finetuning": [{"name": "a", "target": "diagnosis", "learning_rates": [0.001] * 101}]},
        "at most 100",
    ),
}  # fmt: skip


APPROVING = """
import json, re, resource, sys
from pathlib import Path
import torch
from common.errors import SettingError
from common.network.buildable import check_buildable
from common.study import load_study

def peak():  # of this program; ru_maxrss would begin with that of whoever started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

before = peak()
for file in sorted(Path(sys.argv[1]).glob("*.toml")):
    try:
        check_buildable(load_study(file), file)
    except SettingError as error:
        print(json.dumps([file.stem, str(error), peak() - before]))
"""


def test_a_study_too_large_to_be_built_is_refused_before_it_is(tmp_path: Path) -> None:
    """Approving hidden = [65536, 65536] tried to take 17 GB, to count what would travel."""
    for name, (base, changes, _) in LARGE.items():
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(overridden(base, changes)))
    done = subprocess.run(
        [sys.executable, "-c", APPROVING, tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(name for name, *_ in told) == sorted(LARGE)
    for name, words, grown_mb in told:
        assert re.search(LARGE[name][2], words), words
        assert f"{name}.toml" in words
        assert grown_mb < 300


def test_a_site_grants_more_or_less_by_its_policy(
    federation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is the site's own; the coordinator, who has no policy, says it in two variables."""
    made = federation(site={"policy": {"largest_network": 30}})
    with pytest.raises(SettingError, match="at most 30 are built"):
        consent(load_site(made.sites / "alpha" / "site.toml"), made.study)
    check_buildable(made.study, made.study_file)
    monkeypatch.setenv("CALLOSUM_LARGEST_NETWORK", "30")
    with pytest.raises(SettingError, match="at most 30 are built"):
        check_buildable(made.study, made.study_file)
    monkeypatch.setenv("CALLOSUM_LARGEST_NETWORK", "many")
    with pytest.raises(SettingError, match="a number is needed"):
        check_buildable(made.study, made.study_file)
    assert Policy().largest_network == LARGEST_NETWORK
    assert Policy().largest_step_gb == LARGEST_STEP_GB
    assert Limits.of_environment is not None


def test_an_outline_has_the_names_and_shapes_of_the_network(
    federation: Callable[..., Any],
) -> None:
    """What an order may bring is told from it."""
    study = federation().study
    real = {n: (tuple(t.shape), t.dtype) for n, t in build(study, seed=0).state_dict().items()}
    outlined = outline(study)
    told = {n: (tuple(t.shape), t.dtype) for n, t in outlined.state_dict().items()}
    assert told == real
    assert {t.device.type for t in outlined.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    "more",
    [
        "\n" + ".".join(["a"] * 20_000) + " = 1\n",
        "".join(f"\n[a{n}.b]\n" for n in range(20_000)),
        "\n[more]\nx = [" + ",".join(["1"] * 200_001) + "]\n",
    ],
    ids=["one deep key", "many unknown tables", "a long list"],
)
def test_a_study_file_that_is_all_faults_is_refused_in_seconds(tmp_path: Path, more: str) -> None:
    """Each was hours or gigabytes of somebody's approving; now each is a few lines."""
    file = tmp_path / "study.toml"
    file.write_text(tomli_w.dumps(FEATURES) + more)
    with pytest.raises(SettingError) as found:
        load_study(file)
    assert len(str(found.value)) < 20_000


def test_a_site_without_data_refuses_in_the_same_way(federation: Callable[..., Any]) -> None:
    """What is not there must not open what is closed."""
    study = federation().study
    cohort = empty_cohort(study)
    of = order(study, "evaluate", model="x-linear")
    with pytest.raises(Refusal):
        check_announced(of, (("linear/age/intercepts", 1 << 30),), expected(of, study, cohort))
