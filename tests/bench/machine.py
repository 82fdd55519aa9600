"""The machine, versions and date that stand above every table."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform

import torch


def line() -> str:
    """One line that says where and with what the figures were made."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "flwr"))
    return (
        f"{dt.datetime.now(tz=dt.UTC).date()}, {device}, {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, {versions}"
    )
