"""Samples that are made whenever they are needed, and never kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.reader import Reader, Source, reader_of
from client.data.workers import check_samples
from common.errors import ScanError
from common.study import Study


class Lazy:
    """(N, *shape) samples of `sources`, in their order; a source is read once in each asking.

    Raises
    ------
    ScanError
        When a source, asked for, gives something else than the study says; naming the scan.
    """

    def __init__(self, study: Study, sources: Sequence[Source]) -> None:
        self._reader: Reader = reader_of(study.kind_name)
        self._data, self._sources = study.data, tuple(sources)
        self._of = np.repeat(np.arange(len(sources)), [source.n for source in sources])
        self._first = np.concatenate([[0], np.cumsum([source.n for source in sources])])
        self._shape, self.dtype = study.shape, np.dtype(study.kind.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (len(self), *self._shape)

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, chosen: Any, /) -> NDArray[Any]:
        if np.ndim(chosen) == 0 and not isinstance(chosen, slice):
            return self[np.array([chosen])][0]  # type: ignore[no-any-return]
        wanted = np.arange(len(self))[chosen]
        found = np.empty((len(wanted), *self._shape), dtype=self.dtype)
        of = self._of[wanted]
        order = np.argsort(of, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(of[order])) + 1) if len(order) else ():
            number = of[here[0]]
            found[here] = self._made(number)[wanted[here] - self._first[number]]
        return found

    def _made(self, number: int) -> NDArray[Any]:
        source = self._sources[number]
        try:
            samples = np.ascontiguousarray(self._reader.prepare(self._data, source).samples)
            check_samples(samples, self.dtype, self._shape)
            if len(samples) != source.n:
                raise ScanError(f"{len(samples)} samples were made, {source.n} announced")
        except ScanError as error:
            raise ScanError(f"{source.scan}: {error}") from None
        return samples
