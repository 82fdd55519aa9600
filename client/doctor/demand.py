"""What a study asks of a site's machine and line: bytes on disk, in memory and on the wire."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Final

import numpy as np

from client.data.generation import SAMPLES, current_generation, prepared_folder
from client.data.reader import find_sources
from client.site import Site
from common.errors import CallosumError
from common.explain import travelling_bytes
from common.network.building import plan_of, views_of
from common.network.plan import Plan
from common.network.size import outline, step_bytes
from common.study import Study

_PROCESS: Final = 500e6  # measured: a Python with torch, gRPC and a network, before a first order
_KEPT_REPORTS: Final = 4  # two rounds of reports and of the site's own arrays


class Demand:
    """One study at one site; the network is outlined once, when somebody asks."""

    def __init__(self, study: Study) -> None:
        self.study = study

    @property
    def row_bytes(self) -> int:
        """Of one prepared sample."""
        itemsize: int = np.dtype(self.study.kind.dtype).itemsize
        return math.prod(self.study.shape) * itemsize

    @property
    def received_bytes(self) -> int:
        """Of the arrays that a training order brings."""
        return sum(rule.nbytes for rule in self._plan.values())

    @property
    def sent_bytes(self) -> int:
        """Of the arrays that a training report takes."""
        return travelling_bytes(self._plan)

    @property
    def kept_bytes(self) -> int:
        """Of the reports that a run keeps at the site."""
        return _KEPT_REPORTS * self.received_bytes

    def preparing_bytes(self, site: Site, scans: int) -> int:
        """What preparing `scans` scans will still take: nothing, or all of a new generation."""
        whole = scans * self.row_bytes
        current = current_generation(prepared_folder(self.study, site))
        held = (current / SAMPLES).stat().st_size if current else 0
        # scans are left out and repeated; a generation that lacks a tenth is not that of these
        return 0 if held >= 0.9 * whole else whole

    @cached_property
    def memory_bytes(self) -> float:
        """Roughly what a step of training takes; from the shapes of each layer's output."""
        batch = self.study.pretraining.batch_size * views_of(self._network)
        return step_bytes(self._network, self.study.shape, batch)

    @property
    def process_bytes(self) -> float:
        """Of the agent itself, in the machine's memory whatever the device."""
        return _PROCESS

    @cached_property
    def _network(self) -> Any:
        return outline(self.study)

    @cached_property
    def _plan(self) -> Plan:
        return plan_of(self._network, self.study.aggregation.normalisation)


def scans_of(study: Study, site: Site) -> int:
    """How many scans or rows the site's files hold for a study, by name alone.

    Raises
    ------
    CallosumError
        If the site's data cannot be listed; its text may name files.
    """
    try:
        return len(find_sources(study, site).sources)
    except OSError as error:
        raise CallosumError("the data cannot be listed") from error
