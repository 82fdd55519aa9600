"""Repeats of a protocol in several processes, one thread each: the same bits for any number.

A worker writes what it found to the site's folder; from there it is read, as after a crash. Where
there are GPUs, each worker has one.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from client.data.cohort import Chosen, Cohort
from client.data.workers import end_with_parent, place_socket
from common.errors import reason

_START_S: Final = 6.0  # measured: until a first worker has imported torch
_log = getLogger("callosum.site")


class Job(Protocol):
    """What a worker is sent once, and then asked for repeat by repeat."""

    @property
    def cohort(self) -> Cohort: ...
    def work(self, number: int, /) -> None:
        """Do one repeat and keep what it came to."""


@dataclass(frozen=True, slots=True)
class _Mapped:
    """Where samples lie, for a process that maps them itself: they are never sent."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def work_through(
    job: Job, numbers: Sequence[int], asked: int, kind: str, advance: Callable[[], None]
) -> None:
    """Do the repeats `numbers`; other processes are only started where that saves time.

    asked: a site's `device.workers`; kind: its `device.kind`.
    """
    waiting = list(numbers)
    began = time.monotonic()
    with _one_thread():
        _here(job, waiting[:1], advance)
    left = waiting[1:]
    here_s = (time.monotonic() - began) * len(left)
    workers = min(asked or workers_of(kind), len(left))
    if workers > 1 and here_s > here_s / workers + _START_S:
        left = _elsewhere(job, left, workers, advance)
    with _one_thread():
        _here(job, left, advance)


def workers_of(kind: str) -> int:
    """One process for each GPU; without any, for each core, as far as free memory goes.

    Each takes about what this process, which has just done a repeat, took at most.
    """
    if kind != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, free_bytes() // peak_bytes()))


def peak_bytes() -> int:
    """Most memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int:
    """Memory that can be had without swapping, as Linux tells it; elsewhere no limit."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return sys.maxsize
    found = re.search(r"MemAvailable:\s+(\d+) kB", told)
    return int(found[1]) * 1024 if found else sys.maxsize


def _here(job: Job, numbers: Sequence[int], advance: Callable[[], None]) -> None:
    for number in numbers:
        job.work(number)
        advance()


def _elsewhere(
    job: Job, numbers: Sequence[int], workers: int, advance: Callable[[], None]
) -> list[int]:
    """Those of `numbers` that are left because a process died, or none could be started."""
    left = list(numbers)
    place_socket()
    # forkserver, not fork: the caller may hold threads and a GPU
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    places = context.SimpleQueue()
    for place in range(workers):
        places.put(place)
    try:
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(_sent(job), places)
        )
    except OSError as error:
        _log.warning("no processes can be started (%s); this one works alone", reason(error))
        return left
    try:
        waiting = {pool.submit(_work, number): number for number in left}
        for done in as_completed(waiting):
            done.result()
            left.remove(waiting[done])
            advance()
    except (BrokenProcessPool, OSError) as error:
        _log.warning("a process died (%s); this one does %d repeats alone", error, len(left))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return left


_JOB: list[Job] = []  # of this worker


def _begin(job: Any, places: Any) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    place = places.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    _JOB.append(_received(job))


def _work(number: int) -> None:
    _JOB[0].work(number)


def _sent(job: Any) -> Any:
    return replace(job, cohort=replace(job.cohort, samples=_unmapped(job.cohort.samples)))


def _received(job: Any) -> Any:
    return replace(job, cohort=replace(job.cohort, samples=_mapped(job.cohort.samples)))


def _unmapped(samples: Any) -> Any:
    if isinstance(samples, np.memmap):
        return _Mapped(Path(str(samples.filename)), samples.dtype, samples.shape)
    if isinstance(samples, Chosen):
        return Chosen(_unmapped(samples.samples), samples.indices)
    return samples


def _mapped(samples: Any) -> Any:
    if isinstance(samples, _Mapped):
        return np.memmap(samples.file, dtype=samples.dtype, mode="r", shape=samples.shape)
    if isinstance(samples, Chosen):
        return Chosen(_mapped(samples.samples), samples.indices)
    return samples


@contextmanager
def _one_thread() -> Iterator[None]:
    """More would be faster and other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
