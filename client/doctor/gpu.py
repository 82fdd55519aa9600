"""The GPU on the bus, in its driver, behind its device files, and in torch: each can be missing."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from client.doctor.finding import CannotTellError, Finding, bad, good, literal, note, size
from client.doctor.gpu_probe import is_faithful
from client.site import Site
from common.protocol.bounded_json import parsed

_SMI_PATIENCE_S: Final = 30.0  # eight GPUs without persistence mode take ten
_TORCH_PATIENCE_S: Final = 120.0  # the first use of CUDA after a restart
_ROOT: Final = Path(__file__).parents[2]
_NVIDIA: Final = "0x10de"

# what nvidia-smi says when it cannot work, and what that means
_TROUBLES: Final = {
    "version mismatch": (
        "the driver was updated and its old version still runs",
        "restart the machine (or unload and load the nvidia kernel modules)",
    ),
    "couldn't communicate": (
        "the driver's kernel module is not loaded, as after an update of the kernel",
        "install the driver for the running kernel and restart the machine",
    ),
    "insufficient permissions": (
        "this user may not use the GPU",
        "add the agent's user to the group that owns /dev/nvidia* (often video or render)",
    ),
    "no devices were found": (
        "the driver runs and sees no GPU",
        "look at `dmesg | grep -i nvrm`; restart the machine, or pass the GPU to this container",
    ),
    "unable to determine the device handle": (
        "a GPU has stopped answering its driver",
        "restart the machine; if it comes back, have the card looked at",
    ),
    # last: it is also the end of other messages
    "unknown error": (
        "the GPU was taken away from this container or service, as `systemctl daemon-reload` does",
        (
            "restart the container; so that it does not happen again, give it its devices by CDI "
            "(nvidia-ctk cdi generate), or let Docker use the cgroupfs driver"
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What nvidia-smi tells; `cuda` is the newest CUDA that the driver carries."""

    version: str = ""
    cuda: str = ""
    gpus: tuple[str, ...] = ()
    trouble: str = ""
    remedy: str = ""


def read_smi(text: str, code: int) -> Driver:
    """The driver from what `nvidia-smi -q` printed and its exit code.

    >>> read_smi("Failed to initialize NVML: Unknown Error", 255).trouble[:21]
    'the GPU was taken awa'
    """
    if code != 0 or "Driver Version" not in text:
        said = text.casefold()
        known = [words for part, words in _TROUBLES.items() if part in said]
        trouble, remedy = (
            known[0]
            if known
            else (
                f"nvidia-smi ends with code {code}",
                "run nvidia-smi -q and see what it says",
            )
        )
        return Driver(trouble=trouble, remedy=remedy)
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(" : ")
        if separator:
            values.setdefault(key.strip(), []).append(value.strip())
    cuda = values.get("CUDA Version", [""])[0]
    return Driver(
        version=values["Driver Version"][0],
        cuda=cuda if re.fullmatch(r"\d+\.\d+", cuda) else "",
        gpus=tuple(values.get("Product Name", ())),
    )


class Machine:
    """The machine's GPUs, each question put to it once."""

    def __init__(self, root: Path = Path("/"), smi: str = "nvidia-smi") -> None:
        self._root, self._smi = root, smi

    @property
    def nodes(self) -> list[Path]:
        """Device files of GPUs and of the driver's control."""
        dev = self._root / "dev"
        return sorted([*dev.glob("nvidia[0-9]*"), *dev.glob("nvidiactl"), *dev.glob("nvidia-uvm")])

    @property
    def cards(self) -> int:
        """NVIDIA's graphics and compute cards on the bus, whether or not a driver runs."""
        count = 0
        for device in (self._root / "sys/bus/pci/devices").glob("*"):
            vendor, kind = _text(device / "vendor"), _text(device / "class")
            count += vendor == _NVIDIA and kind.startswith("0x03")
        return count

    @cached_property
    def driver(self) -> Driver | None:
        """What the driver tells; None where there is no trace of one."""
        try:
            told = subprocess.run(  # noqa: S603  the machine's own nvidia-smi
                [self._smi, "-q"],
                capture_output=True,
                timeout=_SMI_PATIENCE_S,
                check=False,
            )
        except FileNotFoundError:
            return self._without_smi()
        except subprocess.TimeoutExpired:
            return Driver(
                trouble=f"nvidia-smi does not answer within {_SMI_PATIENCE_S:.0f} s",
                remedy="restart the machine; if it comes back, have the card looked at",
            )
        text = (told.stdout + told.stderr).decode(errors="replace")
        return read_smi(text, told.returncode)

    @cached_property
    def torch(self) -> Mapping[str, Any]:
        """What `client.doctor.gpu_probe` printed, or why it printed nothing."""
        try:
            told = subprocess.run(
                [sys.executable, "-m", "client.doctor.gpu_probe"],
                capture_output=True,
                timeout=_TORCH_PATIENCE_S,
                check=False,
                cwd=_ROOT,
            )
        except subprocess.TimeoutExpired:
            return {"died": f"does not come back within {_TORCH_PATIENCE_S:.0f} s"}
        if told.returncode < 0:
            return {"died": f"was ended by {signal.Signals(-told.returncode).name}"}
        if told.returncode > 0:
            last = told.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return {"died": "cannot be started", "problem": "".join(last)}
        found: Mapping[str, Any] = parsed(told.stdout.splitlines()[-1])
        return found

    def _without_smi(self) -> Driver | None:
        text = _text(self._root / "proc/driver/nvidia/version")
        found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
        return Driver(version=found[1]) if found else None


def seen(machine: Machine, site: Site) -> Finding:
    """A GPU that the driver sees."""
    driver = machine.driver
    if driver is None:
        return _none(machine, site)
    if driver.trouble:
        return _grave(site)(driver.trouble, driver.remedy)
    gpus = ", ".join(_counted(driver.gpus)) or f"{len(machine.nodes)} device files"
    carries = f", with CUDA up to {driver.cuda}" if driver.cuda else ""
    return good(literal(f"{gpus}; driver {driver.version}{carries}"))


def reachable(machine: Machine, site: Site) -> Finding:
    """Device files that this process may open: a cgroup can close them while they stay visible."""
    closed: dict[int, list[str]] = {}
    for node in machine.nodes:
        try:
            os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            closed.setdefault(error.errno or 0, []).append(node.name)
    if not machine.nodes:
        return good("there are no device files of a GPU, so none is closed")
    if not closed:
        return good(f"all {len(machine.nodes)} device files can be opened")
    number, names = next(iter(closed.items()))
    found, remedy = _closed(number, ", ".join(names))
    return _grave(site)(found, remedy)


def computes(machine: Machine, site: Site) -> Finding:
    """Torch and the driver fit, and a small convolution gives on the GPU what a CPU gives."""
    told = machine.torch
    if "died" in told:
        remedy = "run `python -m client.doctor.gpu_probe` and see what it says"
        return bad(f"torch {told['died']}: {{reason}}", remedy, reason=told.get("problem", ""))
    if told["cuda"] is None:
        if machine.driver is None:
            return good(f"torch {told['torch']} is made for CPUs, and no GPU is here")
        return note(
            f"there is a GPU, but torch {told['torch']} is made for CPUs",
            "install torch 2.13.0 for CUDA into the agent's environment "
            "(pip install torch==2.13.0 --index-url of a CUDA build), or set "
            'device.kind = "cpu" in site.toml',
        )
    if machine.driver is None and not told["gpus"]:
        return good(f"torch {told['torch']} is made for CUDA {told['cuda']}; no GPU is here")
    if "problem" in told or not told["gpus"]:
        return _unusable(told, machine.driver, site)
    return _used(told, machine.driver)


def chosen(machine: Machine, site: Site) -> Finding:
    """What site.toml asks for, and what training will take."""
    kind, told = site.device.kind, machine.torch
    if "died" in told:
        raise CannotTellError("torch does not start, see torch")
    gpus = [gpu["name"] for gpu in told["gpus"]] if "difference" in told else []
    if kind == "cuda" and not gpus:
        return bad(
            'device.kind is "cuda" and torch can use no GPU: every order would fail',
            'mend what GPU and torch say, or set device.kind = "cpu" in {site_file}',
            site_file=site.file,
        )
    if kind == "cpu":
        return good('device.kind is "cpu": training takes the CPU')
    if not gpus:
        return note(
            f'device.kind is "{kind}" and there is no GPU to use: training takes the CPU',
            'if that is meant, say so with device.kind = "cpu" in {site_file}',
            site_file=site.file,
        )
    return good(f'device.kind is "{kind}": training takes {literal(gpus[0])}')


def _none(machine: Machine, site: Site) -> Finding:
    if machine.cards:
        return _grave(site)(
            f"{machine.cards} NVIDIA cards are on the bus and no driver runs",
            "install NVIDIA's driver and restart the machine",
        )
    if machine.nodes:
        return _grave(site)(
            "there are device files of a GPU and no driver behind them",
            "start the container with the GPU (docker run --gpus all, or a CDI device)",
        )
    found = "no GPU and no driver are here"
    if site.device.kind == "cuda":
        return bad(found, "install a GPU and its driver, or pass them to this container")
    return good(found)


def _grave(site: Site) -> Callable[..., Finding]:
    """How bad it is that a GPU cannot be used: only worth a note where nobody means to."""
    return note if site.device.kind == "cpu" else bad


def _closed(number: int, names: str) -> tuple[str, str]:
    if number == errno.EPERM:
        _, remedy = _TROUBLES["unknown error"]
        return f"{names}: visible, but closed by the device rules of the cgroup", remedy
    if number == errno.EACCES:
        _, remedy = _TROUBLES["insufficient permissions"]
        return f"{names}: this user may not open them", remedy
    return (
        f"{names}: no driver answers behind them ({errno.errorcode.get(number, number)})",
        "load the nvidia kernel modules (nvidia-modprobe -u -c 0), or restart the machine",
    )


def _unusable(told: Mapping[str, Any], driver: Driver | None, site: Site) -> Finding:
    """Why torch cannot use a GPU: a driver too old for it, or what torch itself says."""
    made = f"torch {told['torch']} is made for CUDA {told['cuda']}"
    if driver and driver.cuda and _version(driver.cuda)[0] < _version(told["cuda"])[0]:
        remedy = "update NVIDIA's driver, or install torch 2.13.0 for an older CUDA"
        return _grave(site)(f"{made}, the driver carries CUDA up to {driver.cuda}", remedy)
    remedy = "mend what GPU and GPU access say; then restart the agent"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        remedy += " (CUDA_VISIBLE_DEVICES is set: does it hide the GPU?)"
    reason = told.get("problem", "it finds none").splitlines()[0]
    return _grave(site)(f"{made} and cannot use the GPU: {{reason}}", remedy, reason=reason)


def _used(told: Mapping[str, Any], driver: Driver | None) -> Finding:
    """What is to be said of a GPU on which a convolution ran."""
    if not is_faithful(told["difference"]):
        return bad(
            f"a convolution on the GPU differs from the CPU's by {told['difference']:.0%}",
            "do not train on this GPU; have the card and its memory tested",
        )
    gpu = told["gpus"][0]
    found = f"torch {told['torch']}; a convolution ran in CUDA {told['cuda']}, "
    found += f"{size(gpu['free'])} of {size(gpu['total'])} are free"
    if driver and driver.cuda and _version(driver.cuda) < _version(told["cuda"]):
        remedy = "it works; update NVIDIA's driver when it suits, some features need it"
        return note(f"{found}; the driver carries CUDA up to {driver.cuda}", remedy)
    if gpu["free"] < gpu["total"] / 2:
        remedy = "see with nvidia-smi whose processes hold the rest, and end them before a round"
        return note(found, remedy)
    return good(found)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _counted(names: tuple[str, ...]) -> list[str]:
    """Each name once, with how often it is there.

    >>> _counted(("NVIDIA A10", "Tesla T4", "NVIDIA A10"))
    ['2 x NVIDIA A10', 'Tesla T4']
    """
    each = dict.fromkeys(names)
    return [f"{names.count(n)} x {n}" if names.count(n) > 1 else n for n in each]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
