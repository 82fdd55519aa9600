"""Sources are prepared in several processes, and come back in the order they were given."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.util
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.reader import Prepared, Source, reader_of
from common.errors import ScanError, reason
from common.study import Study

_FIRST: Final = 4  # scans prepared here to learn what one costs
_START_S: Final = 1.2  # measured: until a first worker has imported what it needs
_MOST: Final = 16
_AHEAD: Final = 3  # results waiting for each worker: enough to hide one slow scan
# bytes of a folder in which Python's forkserver can have its socket, whose path the kernel bounds
_LONGEST: Final = 107 - len("/pymp-12345678/listener-12345678")
_SHORT: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  tried in turn, as Python does
_log = getLogger("callosum.site")


Form = tuple[np.dtype[Any], tuple[int, ...]]  # dtype and shape of one sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What preparing one source gave: samples (n, *shape), or why there are none."""

    status: str
    samples: NDArray[np.generic] | None = None
    measures: NDArray[np.float32] | None = None  # (n, R)
    notes: tuple[str, ...] = ()
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)


def prepare_all(
    study: Study, sources: Sequence[Source], workers: int | None
) -> Generator[Outcome, None, None]:
    """Outcomes of `sources`, in order; closing the generator ends the processes."""
    if workers == 1:
        yield from _here(study, sources)
    elif workers:
        yield from _elsewhere(study, sources, workers)
    else:
        began = time.perf_counter()
        yield from _here(study, sources[:_FIRST])
        left, cores = sources[_FIRST:], _cores()
        here_s = (time.perf_counter() - began) / _FIRST * len(left)
        if cores > 1 and here_s > here_s / cores + 2 * _START_S:
            yield from _elsewhere(study, left, min(cores, len(left)))
        else:
            yield from _here(study, left)


def _here(study: Study, sources: Sequence[Source]) -> Iterator[Outcome]:
    for source in sources:
        yield prepare_one(study.kind_name, study.data, _form(study), source)


def _elsewhere(study: Study, sources: Sequence[Source], count: int) -> Iterator[Outcome]:
    start = 0
    while start < len(sources):
        try:
            with closing(_until_broken(study, sources[start:], count)) as outcomes:
                for outcome in outcomes:
                    yield outcome
                    start += 1
        except OSError as error:  # of starting processes: what a scan raises is told as its outcome
            _log.warning("no processes can be started (%s); this one prepares alone", reason(error))
            yield from _here(study, sources[start:])
            return
        if start < len(sources):
            # a process died, of its scan or of another's: the one that is due is tried alone
            alone = list(_until_broken(study, sources[start : start + 1], 1))
            died = Outcome(status="failed", notes=("the process that read it died",))
            yield alone[0] if alone else died
            start += 1


def prepare_one(kind: str, data: Any, form: Form, source: Source) -> Outcome:
    """Prepare one source and check what comes back; whatever goes wrong is told, not raised."""
    try:
        prepared: Prepared = reader_of(kind).prepare(data, source)
        samples = np.ascontiguousarray(prepared.samples)
        measures = _measures(prepared, len(samples))
        check_samples(samples, *form, incomplete=bool(getattr(data, "missing_columns", 0)))
        if any(len(cells) != len(samples) for cells in prepared.labels.values()):
            raise ScanError(f"prepared to {len(samples)} samples with another number of labels")
    except ScanError as error:
        return Outcome(status="left out", notes=(str(error),))
    except OSError as error:
        return Outcome(status="failed", notes=(f"cannot be read: {reason(error)}",))
    except Exception as error:  # noqa: BLE001  one bad scan must never stop a site
        return Outcome(status="failed", notes=(f"{type(error).__name__}: {error}",))
    return Outcome(
        status="ready",
        samples=samples,
        measures=measures,
        notes=prepared.notes,
        labels=dict(prepared.labels),
        quality=_figures(prepared),
    )


def check_samples(
    samples: NDArray[np.generic],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    incomplete: bool = False,
) -> None:
    """Hold a reader, which may be another package's, to what its seam promises.

    `incomplete`: NaN stands for a column that is missing, as the study lets it be.
    """
    if samples.dtype != dtype or samples.shape[1:] != shape:
        raise ScanError(f"prepared to {samples.dtype} {samples.shape[1:]}, not {dtype} {shape}")
    if not len(samples):
        raise ScanError("prepared to no samples")
    if np.isinf(samples).any() or (not incomplete and np.isnan(samples).any()):
        raise ScanError("prepared to values that are not finite")


def _figures(prepared: Prepared) -> dict[str, float]:
    """Figures that are numbers, in five digits: more would be noise on a person's screen."""
    known = ((name, float(value)) for name, value in prepared.quality.items())
    return {name: float(f"{value:.5g}") for name, value in known if math.isfinite(value)}


def _measures(prepared: Prepared, n: int) -> NDArray[np.float32] | None:
    if prepared.measures is None:
        return None
    measures = np.ascontiguousarray(prepared.measures, dtype=np.float32)
    if measures.ndim != 2 or len(measures) != n or not measures.shape[1]:
        raise ScanError(f"prepared to measures {measures.shape}, not ({n}, R)")
    if not np.isfinite(measures).all():
        raise ScanError("prepared to measures that are not finite")
    return measures


def _until_broken(
    study: Study, sources: Sequence[Source], count: int
) -> Generator[Outcome, None, None]:
    """Outcomes in order, fewer than sources if a process died."""
    kind = study.kind_name
    place_socket()
    # forkserver, not fork: the caller may hold threads and a GPU
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client.data.workers", reader_of(kind).__module__])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent)
    waiting: deque[Future[Outcome]] = deque()
    form, upcoming = _form(study), iter(sources)
    try:
        for source in upcoming:
            waiting.append(pool.submit(prepare_one, kind, study.data, form, source))
            if len(waiting) >= count * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def socket_folder() -> Path | None:
    """Where the forkserver's socket can be: the folder for temporary files, or a shorter one."""
    for place in (tempfile.gettempdir(), *_SHORT):
        if len(os.fsencode(place)) <= _LONGEST and os.access(place, os.W_OK | os.X_OK):
            return Path(place)
    return None


def place_socket() -> None:
    """Let Python make its folder for sockets where their names are not too long."""
    place, before = socket_folder(), tempfile.tempdir
    if place is not None:
        tempfile.tempdir = str(place)
        try:
            multiprocessing.util.get_temp_dir()  # made once, and kept until the process ends
        finally:
            tempfile.tempdir = before


def _form(study: Study) -> Form:
    return np.dtype(study.kind.dtype), study.shape


def end_with_parent() -> None:
    """End this worker when the process that asked for it is gone, killed or not.

    The pool's own pipes never tell: each worker holds both ends of them.
    """

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST, len(os.sched_getaffinity(0)))
    return min(_MOST, os.cpu_count() or 1)
