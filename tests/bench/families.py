"""A step of training of each backbone, in Callosum's loop over a bare PyTorch loop; time and memory.

On a CPU: 64^3 and 96^3, batch 2. Where there is CUDA: 96^3 and 160 x 192 x 160, bfloat16 with volumes
channels-last, eager and compiled, over eager float32 as usually written.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from client.data.cohort import Cohort
from client.learning.training import Recipe, train
from common import catalogue
from common.network.building import build
from common.sections import Steps
from common.study import parse_study

BATCH: Final = 2
MOST_STEPS: Final = 12  # of each loop; the first is not counted
FEWEST_STEPS: Final = 7  # the first among them
ENOUGH_S: Final = 10.0  # of one loop; beyond this the fewest are enough
_MONAI: Final = ("monai.networks.nets.densenet", "monai.networks.nets.resnet")  # 6 s of importing
ON_CPU: Final = ((64, 64, 64), (96, 96, 96))
ON_GPU: Final = ((96, 96, 96), (160, 192, 160))
STUDY: Final[dict[str, Any]] = {  # but for the network and the volume's edges
    "name": "families",
    "data": {"kind": "t1w", "spacing_mm": 1.0},
    "targets": {"age": {"kind": "regression", "centre": 50.0, "scale": 18.0}},
    "objective": {"name": "multitask"},
    "pretraining": {"warmup": 0.1},
    "sites": {"train": ["a"]},
}
STEADY: Final = Steps(batch_size=BATCH, optimiser="adamw", schedule="constant")


def table() -> str:
    """Every backbone for volumes, each measurement in a process of its own."""
    if torch.cuda.is_available():
        return _on_gpu()
    lines = [
        f"Batch {BATCH}, AdamW; seconds of a step, the two in turn, and peaks of a process of each.",
        "",
        "| backbone | volume | bare loop, s | Callosum, s | ratio | peak MB bare | peak MB Callosum |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in _volumes():
        for shape in ON_CPU:
            lines.append(_row(name, shape))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def _volumes() -> list[str]:
    kinds = {name: catalogue.load("backbones", name) for name in catalogue.names("backbones")}
    return [name for name, kind in kinds.items() if "volume" in getattr(kind, "layouts", ())]


def _row(name: str, shape: tuple[int, ...]) -> str:
    """Steps of both loops in turn, in one process; peaks in a process of each loop's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.bench.families", *_MONAI])

    def apart(work: Callable[..., Any], *given: object) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(work, (name, shape, *given))

    bare, ours = apart(seconds)
    ratio = statistics.median(our / its for our, its in zip(ours, bare, strict=True))
    peaks = [apart(peak_mb, way) for way in ("bare", "ours")]
    return (
        f"| {name} | {'x'.join(map(str, shape))} | {statistics.median(bare):.2f} "
        f"| {statistics.median(ours):.2f} | {ratio:.2f} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |"
    )


def seconds(name: str, shape: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Of steps of the bare loop and of Callosum's: a slow minute of the machine is both's."""
    samples = _samples(shape, MOST_STEPS * BATCH)
    bare: list[float] = []
    steps = _bare(network_of(name, shape), samples)

    def turn() -> None:
        with torch.enable_grad():  # the hook's place in the site's loop has none
            bare.append(next(steps))

    ours = _ours(network_of(name, shape), samples, turn)
    return bare[1:], ours[1:]


def peak_mb(name: str, shape: tuple[int, ...], way: str) -> float:
    """Of two steps of one loop."""
    network, samples = network_of(name, shape), _samples(shape, 2 * BATCH)
    if way == "bare":
        list(_bare(network, samples))
    else:
        _ours(network, samples, lambda: None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def network_of(name: str, shape: tuple[int, ...], **keys: Any) -> Any:
    """The published network around one regression target."""
    agreed = parse_study(
        {
            **STUDY,
            "data": {**STUDY["data"], "shape": list(shape)},
            "backbone": {"name": name, **keys},
        },
        Path("families.toml"),
    )
    return build(agreed, seed=0)


def _samples(shape: tuple[int, ...], count: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    return random.standard_normal((count, *shape), dtype=np.float32).astype(np.float16)


def _bare(network: Any, samples: np.ndarray[Any, Any]) -> Iterator[float]:
    """What anyone would write, with volumes channels-last, as Callosum keeps them; a step a turn."""
    layout_convolutions(network)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=True)
    for first in range(0, len(samples), BATCH):
        began = time.perf_counter()
        x = torch.from_numpy(samples[first : first + BATCH].astype(np.float32))
        labels = torch.full((BATCH,), 40.0)
        optimiser.zero_grad()
        output = network(x)["age"][:, 0]
        loss = torch.nn.functional.huber_loss(output, (labels - 50.0) / 18.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        del x, output, loss  # the other loop's turn
        yield time.perf_counter() - began


class _Enough(Exception):  # noqa: N818  no error
    """The loop has shown what it costs."""


def layout_convolutions(network: Any) -> None:
    """Kernels of 3D convolutions channels-last."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)


def _ours(network: Any, samples: np.ndarray[Any, Any], between: Callable[[], None]) -> list[float]:
    """The site's loop, told of the end of each step by the hook that an objective may have."""
    people = tuple(f"sub-{number}" for number in range(len(samples)))
    cohort = Cohort(
        samples=samples, participants=people, scans=people,
        labels={"age": np.full(len(samples), 40.0, dtype=np.float32)}, measures=None,
        layout="volume", findings=(), contents=people, secrets=("",) * len(people),
    )  # fmt: skip
    times: list[float] = []
    began = [time.perf_counter()]

    def note() -> None:
        times.append(time.perf_counter() - began[0])
        between()
        if len(times) > FEWEST_STEPS and sum(times) > ENOUGH_S:
            raise _Enough
        began[0] = time.perf_counter()

    network.after_step = note
    recipe = Recipe(steps=STEADY, rate=1e-4, weight_decay=1e-2, epochs=1, of=1, seed=0)
    with suppress(_Enough):
        train(network, cohort, np.arange(len(samples)), recipe, torch.device("cpu"))
    return times


def _on_gpu() -> str:
    """First what runs at once, then what has to be compiled, which takes minutes."""
    cases = [(name, shape) for name in _volumes() for shape in ON_GPU]
    found: dict[tuple[str, tuple[int, ...], str], tuple[float, float]] = {}
    for ways in (("float32", "bf16"), ("compiled",)):
        for name, shape in cases:
            for way in ways:
                found[name, shape, way] = _gpu_ms(name, shape, way)
                ms, gib = found[name, shape, way]
                print(f"{name} {shape} {way}: {ms:.2f} ms, {gib:.2f} GiB", flush=True)
    lines = [
        f"Batch {BATCH}, AdamW; ms of a step, the median of 10 after 3; GiB of the device.",
        "",
        "| backbone | volume | float32 | bf16 | compiled | / bf16 | / compiled | GiB | GiB bf16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in cases:
        (plain, wide), (bf16, narrow), (fast, _) = (
            found[name, shape, way] for way in ("float32", "bf16", "compiled")
        )
        lines.append(
            f"| {name} | {'x'.join(map(str, shape))} | {plain:.1f} | {bf16:.1f} | {fast:.1f} "
            f"| {plain / bf16:.2f} | {plain / fast:.2f} | {wide:.1f} | {narrow:.1f} |"
        )
    return "\n".join(lines)


def _gpu_ms(name: str, shape: tuple[int, ...], way: str) -> tuple[float, float]:
    """Milliseconds of a step, and the device's peak; NaN where it does not run."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step = gpu_step(name, shape, way)
        for _ in range(3):
            step()
        times = [_timed(step) for _ in range(10)]
    except (RuntimeError, torch.OutOfMemoryError) as error:
        print(f"{name} {shape} {way}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return float("nan"), float("nan")
    return statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


def gpu_step(name: str, shape: tuple[int, ...], way: str) -> Callable[[], None]:
    """One step on the device: forward, backward, AdamW."""
    network = network_of(name, shape).cuda().train()
    x = torch.randn((BATCH, *shape), device="cuda")
    labels = torch.full((BATCH,), 40.0, device="cuda")
    if way != "float32":
        layout_convolutions(network)
    forward = torch.compile(network.backbone) if way == "compiled" else network.backbone
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=way != "float32"):
            output = network.heads["age"](forward(x))[:, 0]
        loss = torch.nn.functional.huber_loss(output.float(), (labels - 50.0) / 18.0)
        loss.backward()
        optimiser.step()

    return step


def _timed(step: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))
