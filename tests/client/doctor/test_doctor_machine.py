"""Each way in which a machine can be unfit is told apart: GPU, disks, memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.doctor import capacity, folders, gpu
from client.doctor.demand import Demand
from client.site import load_site
from tests.client.doctor.loopback import ROOT, as_somebody, told, write_site

pytest_plugins = ("tests.client.doctor.fixtures",)

A100 = """
==============NVSMI LOG==============

Timestamp                                              : Sat May  9 03:38:32 2026
Driver Version                                         : 580.126.09
CUDA Version                                           : 13.0

Attached GPUs                                          : 2
GPU 00000000:00:04.0
    Product Name                                       : NVIDIA A100-SXM4-40GB
    FB Memory Usage
        Total                                          : 40960 MiB
        Free                                           : 40441 MiB
GPU 00000000:00:05.0
    Product Name                                       : NVIDIA A100-SXM4-40GB
"""
VIRTUAL = """==============NVSMI LOG==============

Timestamp                                 : Tue Nov 1 12:06:50 2025
Driver Version                            : 525.147.01
CUDA Version                              : Not Found

Attached GPUs                             : 1
GPU 00000000:01:00.0
    Product Name                          : NVIDIA GeForce RTX 4088
"""
FAILURES = {
    "Failed to initialize NVML: Unknown Error": (255, "daemon-reload", "CDI"),
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.1": (
        18,
        "was updated",
        "restart the machine",
    ),
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that "
    "the latest NVIDIA driver is installed and running.": (9, "not loaded", "install the driver"),
    "Failed to initialize NVML: Insufficient Permissions": (4, "may not use", "group"),
    "No devices were found": (6, "sees no GPU", "dmesg"),
    "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error": (
        255,
        "stopped answering",
        "restart the machine",
    ),
    "Segmentation fault": (139, "code 139", "run nvidia-smi"),
}


def test_a_driver_that_works_is_read() -> None:
    """Name, version and the newest CUDA it carries, where it tells."""
    assert gpu.read_smi(A100, 0) == gpu.Driver(
        version="580.126.09", cuda="13.0", gpus=("NVIDIA A100-SXM4-40GB",) * 2
    )
    assert gpu.read_smi(VIRTUAL, 0).cuda == ""
    assert gpu.read_smi(VIRTUAL, 0).version == "525.147.01"


@pytest.mark.parametrize("said", FAILURES)
def test_a_driver_that_fails_is_explained(said: str) -> None:
    """Each of these sends a hospital to a search engine; here it finds what to do."""
    code, trouble, remedy = FAILURES[said]
    driver = gpu.read_smi(said, code)
    assert trouble in driver.trouble
    assert remedy in driver.remedy


class Told(gpu.Machine):
    """A machine whose driver and torch said this once."""

    def __init__(self, driver: gpu.Driver | None, torch: dict[str, Any]) -> None:
        super().__init__(Path("/nowhere"), "no-such-program")
        self.driver = driver
        self.torch = torch


def torch_with(cuda: str | None = "12.8", **more: Any) -> dict[str, Any]:
    return {"torch": "2.13.0", "cuda": cuda, "gpus": [], **more}


CARD = {"name": "NVIDIA A100", "free": 39e9, "total": 40e9}
DRIVER = gpu.read_smi(A100, 0)
OLD = gpu.Driver(version="470.256.02", cuda="11.4", gpus=("Tesla K80",))
BETWEEN = gpu.Driver(version="525.1", cuda="12.0", gpus=("NVIDIA A100",))
RAN = torch_with(gpus=[CARD], difference=1e-4)
TORCHES = {
    "all is well": (DRIVER, RAN, "good", "a convolution ran"),
    "no GPU, CPU build": (None, torch_with(None), "good", "no GPU is here"),
    "no GPU, CUDA build": (None, torch_with(problem="Found no NVIDIA driver"), "good", "no GPU"),
    "GPU, CPU build": (DRIVER, torch_with(None), "note", "made for CPUs"),
    "driver too old": (OLD, torch_with(problem="too old"), "bad", "carries CUDA up to 11.4"),
    "driver a little old": (BETWEEN, RAN, "note", "up to 12.0"),
    "F2": (DRIVER, torch_with(problem="CUDA unknown error\nlong"), "bad", "cannot use the GPU"),
    "wrong numbers": (DRIVER, torch_with(gpus=[CARD], difference=0.5), "bad", "differs"),
    "not a number": (DRIVER, torch_with(gpus=[CARD], difference=float("nan")), "bad", "differs"),
    "another's": (
        DRIVER,
        torch_with(gpus=[CARD | {"free": 2e9}], difference=0.0),
        "note",
        "2.0 GB of 40.0 GB are free",
    ),
    "crashed": (DRIVER, {"died": "was ended by SIGSEGV"}, "bad", "SIGSEGV"),
}


@pytest.mark.parametrize("name", TORCHES)
def test_torch_and_driver_are_held_against_each_other(tmp_path: Path, name: str) -> None:
    """A site learns before its first round whether training will find the GPU."""
    driver, torch, state, words = TORCHES[name]
    site = write_site(tmp_path, device={"kind": "auto"})
    found = gpu.computes(Told(driver, torch), site)
    assert (found.state, words in found.found) == (state, True), told(found)


@pytest.mark.parametrize(
    ("kind", "torch", "state"),
    [
        ("cuda", torch_with(None), "bad"),
        ("cuda", torch_with(problem="CUDA unknown error"), "bad"),
        ("cuda", RAN, "good"),
        ("auto", torch_with(None), "note"),
        ("auto", RAN, "good"),
        ("cpu", torch_with(None), "good"),
        ("cpu", RAN, "good"),
    ],
)
def test_the_device_that_is_asked_for_must_be_there(
    tmp_path: Path, kind: str, torch: dict[str, Any], state: str
) -> None:
    """`auto` falls back to the CPU in silence, a hundred times slower; here it is said."""
    found = gpu.chosen(Told(None, torch), write_site(tmp_path, device={"kind": kind}))
    assert found.state == state, told(found)


@pytest.mark.slow
def test_this_machine_has_no_gpu_and_says_so(tmp_path: Path) -> None:
    """Torch is really started, in a process of its own."""
    machine = gpu.Machine()
    if machine.driver is not None:
        pytest.skip("this machine has a GPU")
    asked = write_site(tmp_path / "a", device={"kind": "cuda"})
    spared = write_site(tmp_path / "b", device={"kind": "cpu"})
    assert machine.torch["torch"].startswith("2.")
    assert [gpu.seen(machine, asked).state, gpu.chosen(machine, asked).state] == ["bad", "bad"]
    assert [gpu.seen(machine, spared).state, gpu.chosen(machine, spared).state] == ["good", "good"]


@pytest.mark.gpu
def test_a_gpu_computes_what_a_cpu_does(tmp_path: Path) -> None:
    """On a machine that has one, driver and torch agree and the convolution is right."""
    site, machine = write_site(tmp_path, device={"kind": "cuda"}), gpu.Machine()
    if not machine.nodes:
        pytest.skip("no CUDA device")
    for check in (gpu.seen, gpu.reachable, gpu.computes, gpu.chosen):
        assert check(machine, site).state in ("good", "note"), told(check(machine, site))


def test_a_card_without_a_driver_is_found_on_the_bus(tmp_path: Path) -> None:
    """A machine that was bought with a GPU and never got its driver."""
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    machine = gpu.Machine(tmp_path, "no-such-program")
    assert "1 NVIDIA cards are on the bus" in gpu.seen(machine, write_site(tmp_path / "s")).found
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.09  Release Build\n"
    )
    assert gpu.Machine(tmp_path, "no-such-program").driver == gpu.Driver(version="580.126.09")


CLOSED_BY_CGROUP = """
import sys
from pathlib import Path
from client.doctor.finding import PUBLIC
from client.doctor.gpu import Machine, reachable
from client.site import load_site
cgroup = Path(sys.argv[1])
(cgroup / "devices.deny").write_text("c 1:5 rwm")
(cgroup / "cgroup.procs").write_text(str(__import__("os").getpid()))
found = reachable(Machine(Path(sys.argv[2])), load_site(Path(sys.argv[3])))
print(found.state, found.found, found.remedy)
"""


def test_a_gpu_that_a_cgroup_has_closed_is_told_from_a_missing_one(tmp_path: Path) -> None:
    """What `systemctl daemon-reload` does to containers each night: visible, and closed (F2)."""
    controller = Path("/sys/fs/cgroup/devices")
    if not (ROOT and os.access(controller / "devices.deny", os.W_OK)):
        pytest.skip("needs root and the device controller of cgroup version 1")
    (tmp_path / "dev").mkdir()
    try:
        os.mknod(tmp_path / "dev" / "nvidiactl", 0o020666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("device files cannot be made here")
    site = write_site(tmp_path / "site", device={"kind": "auto"})
    assert gpu.reachable(gpu.Machine(tmp_path), site).state == "good"
    own = controller / f"callosum-{os.getpid()}"
    own.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-c", CLOSED_BY_CGROUP, own, tmp_path, site.file],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    finally:
        own.rmdir()
    assert done.stdout.startswith("bad nvidiactl: visible, but closed")
    assert "CDI" in done.stdout


def test_data_are_read_and_never_to_be_written(open_folder: Path) -> None:
    """An error of ours must not be able to harm a hospital's scans."""
    site = write_site(open_folder / "site")
    table = open_folder / "site" / "data" / "table.csv"
    table.chmod(0o444)
    with as_somebody():
        assert folders.data(site).state == "good", told(folders.data(site))
    table.chmod(0o666)
    with as_somebody():
        found = folders.data(site)
    assert found.state == "bad"
    assert "may change or delete" in found.found
    table.chmod(0o000)
    with as_somebody():
        found = folders.data(site)
    assert found.state == "bad"
    assert "1 of 1" in found.found
    table.chmod(0o600)
    if ROOT:
        assert folders.data(site).state == "note"
    table.unlink()
    assert "does not exist" in folders.data(site).found


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_closed_folders_and_linked_ones_are_looked_at(
    hospitals: Path, open_folder: Path, mode: int
) -> None:
    """A folder that cannot be entered broke the check itself; scratch storage was not looked at."""
    shutil.copytree(hospitals / "sites" / "amber", open_folder / "amber")
    subprocess.run(["chmod", "-R", "a+rX,a-w", open_folder / "amber"], check=True)
    scratch = open_folder / "scratch"
    (scratch / "anat").mkdir(parents=True)
    (scratch / "anat" / "file").write_text("x")
    site = load_site(open_folder / "amber" / "site.toml")
    site = site.model_copy(update={"data": site.data.model_copy(update={"links": (str(scratch),)})})
    (scratch / "anat").chmod(mode)
    with as_somebody():
        found = folders.data(site)
    assert found.state == "bad"
    assert "cannot be read by this user" in found.found
    subprocess.run(["chmod", "-R", "u+rwX", open_folder], check=True)


def test_one_closed_scan_among_many_is_found(hospitals: Path, open_folder: Path) -> None:
    """Copied as root by somebody, and read by nobody else; the count tells, and no name."""
    shutil.copytree(hospitals / "sites" / "amber", open_folder / "amber")
    subprocess.run(["chmod", "-R", "a+rX,a-w", open_folder / "amber"], check=True)
    site = load_site(open_folder / "amber" / "site.toml")
    with as_somebody():
        assert folders.data(site).state == "good", told(folders.data(site))
    scan = sorted((open_folder / "amber").rglob("*_T1w.nii*"))[3]
    scan.chmod(0)
    with as_somebody():
        found = folders.data(site)
    assert found.state == "bad"
    assert found.found.startswith("1 of ")
    assert scan.name not in told(found)
    subprocess.run(["chmod", "-R", "u+rwX", open_folder / "amber"], check=True)


def test_the_state_folder_must_take_and_keep_what_is_written(open_folder: Path) -> None:
    """The ledger is there: what it says must survive a power cut."""
    site = write_site(open_folder / "site")
    assert folders.state(site).state == "good", told(folders.state(site))
    assert not site.state.exists()  # looking makes nothing
    site.state.mkdir(mode=0o755)
    with as_somebody():
        found = folders.state(site)
    if ROOT:
        assert found.state == "bad"
        assert "may not write" in found.found
    assert list(site.state.iterdir()) == []


def test_a_ledger_in_memory_is_refused() -> None:
    """A tmpfs forgets, and forgotten privacy is spent twice."""
    memory = Path("/dev/shm")
    if folders.mount_of(memory, Path("/proc/self/mountinfo").read_text()).kind != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        found = folders.state(write_site(Path(folder) / "site"))
    assert found.state == "bad"
    assert "in memory" in found.found


MOUNTS = """\
27 1 254:0 / / rw,relatime - overlay overlay rw,lowerdir=/l
28 27 8:1 / /srv/scans\\040of\\040all ro,nosuid - nfs4 filer:/scans rw
29 27 8:2 / /var rw - ext4 /dev/sda2 rw
30 29 8:3 / /var/lib/callosum rw - cifs //filer/x rw
31 27 8:1 / /var/lib rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "overlay"),
        ("/srv/scans of all/a", "nfs4"),
        ("/srv/scans", "overlay"),
        ("/var/lib/callosum/state", "cifs"),
        ("/var/lib/callosumx", "xfs"),
        ("/var/log", "ext4"),
    ],
)
def test_the_file_system_of_a_path_is_the_nearest_mount(path: str, kind: str) -> None:
    """Locks and SQLite behave by it."""
    assert folders.mount_of(Path(path), MOUNTS).kind == kind


def test_disk_is_held_against_what_preparing_takes(federation: Callable[..., Any]) -> None:
    """A disk that fills in the night ends a run; counted from scans and their prepared shape."""
    made = federation({"backbone.hidden": [2]})
    site = load_site(made.sites / "alpha" / "site.toml")
    demand = Demand(made.study)
    assert demand.row_bytes == 4 * 4
    assert demand.preparing_bytes(site, 40) == 40 * 16
    assert capacity.disk(site, demand).state == "good"

    class Vast(Demand):
        row_bytes = 1 << 50

    found = capacity.disk(site, Vast(made.study))
    assert found.state == "bad"
    assert "are needed to prepare" in found.found
    made.agent("alpha")  # prepares
    assert demand.preparing_bytes(site, 40) == 0
    assert "to keep reports" in capacity.disk(site, demand).found


def test_memory_is_held_against_a_step_of_training(federation: Callable[..., Any]) -> None:
    """Roughly, but enough to tell a batch of 4096 scans from one of eight."""
    small = federation().study
    machine, modest, vast = Told(None, torch_with(None)), Demand(small), Demand(small)
    vast.__dict__["memory_bytes"] = 1e15
    own = SimpleNamespace(device=SimpleNamespace(kind="cpu"))
    assert capacity.memory(machine, own, modest).state == "good"
    found = capacity.memory(machine, own, vast)
    assert found.state == "bad"
    assert "batch_size" in found.remedy
    roomy = Told(DRIVER, RAN)
    gpu_site = SimpleNamespace(device=SimpleNamespace(kind="auto"))
    assert "of the GPU's 40.0 GB" in capacity.memory(roomy, gpu_site, vast).found


def test_loaders_need_no_shared_memory_and_temporary_files_do_need_room() -> None:
    """A container's 64 MB of /dev/shm end other frameworks' runs (F7); ours load by threads."""
    assert capacity.shared_memory().state == "good"
    assert "threads" in capacity.shared_memory().found
    assert capacity.temporary().state in ("good", "note")


PEAK = """
import json, re, sys
from pathlib import Path
import torch
from client.doctor.demand import Demand
from common.network.building import build
from common.study import load_study
torch.set_num_threads(2)
def peak():  # of this program; ru_maxrss would begin with that of whoever started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
study = load_study(Path(sys.argv[1]))
demand = Demand(study)
expected = demand.memory_bytes
network = build(study, seed=0).train()
before = peak()
step = torch.optim.AdamW(network.parameters())
for _ in range(2):
    step.zero_grad()
    x = torch.randn(study.pretraining.batch_size, *study.shape)
    terms = network.terms(x, {"age": torch.randn(len(x)), "sex": torch.ones(len(x))})
    sum(term.values.mean() for term in terms.values()).backward()
    step.step()
print(json.dumps([expected, peak() - before]))
"""


@pytest.mark.slow
def test_the_memory_estimate_is_near_what_a_step_takes(brains: Callable[..., Any]) -> None:
    """Rough, but not by a factor of two: otherwise it would warn the wrong sites."""
    made = brains(
        {
            "data.shape": [64, 64, 64],
            "backbone.channels": [16, 32, 64],
            "pretraining.batch_size": 8,
        }
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK, made.study_file],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    expected, measured = json.loads(done.stdout)
    assert 0.5 < expected / measured < 2
