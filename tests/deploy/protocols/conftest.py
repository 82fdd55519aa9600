"""A protocol small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.conftest import overridden

TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [1],
    "shares": [1.0],
    "initialisations": ["scratch", "supervised"],
    "tasks": ["age"],
    "threads": 1,
    "grid": {"shape": [12, 14, 12], "spacing_mm": 14.0},
    "architectures": {
        "sfcn": {
            "backbone": {"name": "sfcn", "channels": [2, 4], "top": 4},
            "masked": {"name": "simmim", "cube": 4},
            "learning_rate": 0.002,
        }
    },
    "pretraining": {"people": 24, "rounds": 1, "batch_size": 8},
    "downstream": {"people": 24, "rounds": 2, "batch_size": 8},
}


@pytest.fixture
def protocol_file(tmp_path: Path) -> Any:
    """Write TINY with changes; its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "protocol.toml"
        path.write_text(tomli_w.dumps(overridden(TINY, changes)))
        return path

    return write
