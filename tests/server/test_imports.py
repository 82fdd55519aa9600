"""What the coordinator's server loads, and how long that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "nibabel", "nilearn", "scipy", "sklearn", "matplotlib", "opacus", "pandas")
INITIAL = "server.federation.initial"

MEASURED = """
import importlib, json, pkgutil, sys, time
import flwr, pydantic, numpy, safetensors
import server
names = [m.name for m in pkgutil.walk_packages(server.__path__, "server.")]
began, before = time.perf_counter(), set(sys.modules)
seconds = {}
for name in names:
    if name == INITIAL:
        continue
    since = time.perf_counter()
    importlib.import_module(name)
    seconds[name] = round(time.perf_counter() - since, 3)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
light = round(time.perf_counter() - began, 3)
importlib.import_module(INITIAL)
print(json.dumps([seconds, loaded, light, round(time.perf_counter() - began - light, 3),
                  "torch" in sys.modules]))
"""


def test_the_server_meets_torch_in_one_file_and_reads_no_images(capsys) -> None:
    """A coordinator's machine has no GPU and needs little memory; images are the sites' business."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.replace("INITIAL", repr(INITIAL))],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    seconds, loaded, light, heavy, torch = json.loads(done.stdout)
    with capsys.disabled():
        slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:3]
        print(f"\nserver: {len(seconds)} modules in {light} s beside Flower, slowest "
              f"{', '.join(f'{name} {seconds[name]} s' for name in slowest)}; "
              f"{INITIAL} with torch: {heavy} s more")  # fmt: skip
    assert not set(HEAVY) & set(loaded)
    assert torch  # else this test looks at nothing
    assert len(seconds) > 15
