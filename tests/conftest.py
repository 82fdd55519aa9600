"""Small federations on disk: tables with a known linear signal, and a few very coarse brains."""

from __future__ import annotations

import copy
import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import NOTSET, getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

COLUMNS = ("thickness", "volume", "depth", "curvature")
SLOPES = np.array([6.0, -4.0, 2.0, 0.0])  # years of age for one unit of each column

FEATURES: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "data": {"kind": "features", "columns": list(COLUMNS)},
    "targets": {
        "age": {"kind": "regression", "unit": "years", "centre": 50.0, "scale": 10.0},
        "sex": {"kind": "binary", "classes": ["female", "male"], "weight": 0.5},
        "diagnosis": {"kind": "binary", "classes": ["control", "ad"]},
    },
    "backbone": {"name": "mlp", "hidden": [6], "dropout": 0.1},
    "objective": {"name": "multitask", "targets": ["age", "sex"]},
    "pretraining": {"rounds": 2, "batch_size": 16, "learning_rate": 0.01},
    "sites": {"train": ["alpha", "beta", "gamma"]},  # a judge costs more than all training
    "comparisons": {"single_site": False, "pooled": False},
    "evaluation": {"bootstrap": 100},
}

BRAINS: dict[str, Any] = {
    "name": "coarse",
    "seed": 11,
    "data": {"kind": "t1w", "shape": [12, 14, 12], "spacing_mm": 14.0, "align": "world"},
    "targets": {
        "age": {"kind": "regression", "unit": "years", "centre": 50.0, "scale": 18.0},
        "sex": {"kind": "binary", "classes": ["female", "male"], "weight": 0.5},
    },
    "backbone": {"name": "sfcn", "channels": [2, 4], "top": 4, "dropout": 0.2},
    "objective": {"name": "multitask"},
    "pretraining": {"rounds": 3, "batch_size": 4, "learning_rate": 0.002},
    "sites": {"train": ["amber", "birch"], "heldout": ["elm"]},
    "comparisons": {"single_site": False, "pooled": False},
    "evaluation": {"bootstrap": 100},
}


def overridden(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` with values replaced by dotted key: ``{"pretraining.rounds": 5}``."""
    changed = copy.deepcopy(dict(tables))
    for dotted, value in changes.items():
        *places, key = dotted.split(".")
        here = changed
        for place in places:
            here = here.setdefault(place, {})
        here[key] = copy.deepcopy(value)  # a later key may change what is inside
    return changed


@dataclass(frozen=True)
class Federation:
    """Site files below one folder, and the study that names them."""

    folder: Path
    base: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> Path:
        return self.folder / "sites"

    @property
    def study_file(self) -> Path:
        path = self.folder / "study.toml"
        text = tomli_w.dumps(overridden(self.base, self.changes))
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path

    @property
    def study(self) -> Any:
        from common.study import load_study

        return load_study(self.study_file)

    def agent(self, name: str, study: Any = None) -> Any:
        """A site with its data prepared, ready for orders."""
        from client.service.agent_pool import open_agent
        from client.site import load_site

        return open_agent(study or self.study, load_site(self.sites / name / "site.toml"))

    def simulate(self, out: str = "run") -> Any:
        """Run the whole study into a folder beside the sites."""
        from deploy.local import simulate

        return simulate(self.study_file, self.sites, self.folder / out)


def write_table_site(
    folder: Path,
    name: str,
    *,
    role: str = "train",
    participants: int = 40,
    lacks: tuple[str, ...] = (),
    shift: float = 0.0,
    site: Mapping[str, Any] | None = None,
) -> None:
    """A site of one table; age is linear in the columns, sex and diagnosis are their signs.

    `lacks` are targets without a column, `shift` is added to every feature (another scanner).
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    random = np.random.default_rng(seed)
    x = random.normal(size=(participants, len(COLUMNS)))
    age = 50 + x @ SLOPES + random.normal(scale=2.0, size=participants)
    sex = np.where(x[:, 0] + random.normal(scale=0.5, size=participants) > 0, "male", "female")
    ill = np.where(x[:, 1] + random.normal(scale=0.5, size=participants) > 0, "ad", "control")
    folder = folder / "sites" / name
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["participant_id", *COLUMNS, "age", "sex", "diagnosis"])
        for i in range(participants):
            values = [f"{value:.6f}" for value in x[i] + shift]
            table.writerow([f"{name}-{i:03d}", *values, f"{age[i]:.3f}", sex[i], ill[i]])
    held = {target: {"column": target} for target in ("age", "sex", "diagnosis")}
    tables = {
        "name": name,
        "role": role,
        "secret": "in the open",
        "data": {"kind": "features", "table": "table.csv"},
        "targets": {target: column for target, column in held.items() if target not in lacks},
        "device": {"kind": "cpu", "threads": 1},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(overridden(tables, site or {})))


def write_federation(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    participants: Mapping[str, int] | None = None,
    lacks: Mapping[str, tuple[str, ...]] | None = None,
    site: Mapping[str, Any] | None = None,
) -> Federation:
    """The `features` study with `changes`, and every site that it names.

    `participants` and `lacks` are by site; `site` changes every site file.
    """
    made = Federation(folder, FEATURES, dict(changes or {}))
    sites = overridden(FEATURES, made.changes)["sites"]
    for number, name in enumerate([*sites["train"], *sites.get("heldout", ())]):
        write_table_site(
            folder,
            name,
            role="train" if name in sites["train"] else "heldout",
            participants=(participants or {}).get(name, 40),
            lacks=(lacks or {}).get(name, ()),
            shift=0.3 * number,
            site=site,
        )
    return made


# files that stand whole federations, real processes or thousands of files up: `make whole`
WHOLE = (
    "attacks/test_askings", "attacks/test_books", "attacks/test_departures", "attacks/test_files",
    "attacks/test_leaks", "attacks/test_local_files", "attacks/test_reports", "attacks/test_rot",
    "attacks/test_secure_sums", "attacks/test_sizes_at_the_coordinator", "attacks/test_text", "chaos/test_chaos",
    "client/data/anatomy/test_preparation", "client/data/anatomy/test_registration",
    "client/data/readers/test_t1w", "client/data/synthesis/test_anatomy",
    "client/data/synthesis/test_people",
    "client/data/test_prepare", "client/data/test_workers",
    "client/learning/test_evaluation", "client/learning/test_hooks",
    "client/learning/test_loading", "client/learning/test_optimisers",
    "client/learning/privacy/test_person_gradients", "client/learning/test_protocols",
    "client/learning/test_training", "client/link/test_link", "client/service/test_agent",
    "client/secure_sums/test_restarts", "client/service/test_kill", "common/protocol/test_code", "common/protocol/test_wire",
    "common/test_seams",
    "deploy/hospitals/test_dataset", "deploy/hub/test_bundle", "deploy/hub/test_nginx",
    "deploy/hub/test_prometheus", "deploy/hub/test_service", "deploy/kits/test_provision",
    "deploy/releases/test_judging", "deploy/releases/test_release",
    "deploy/test_commands",
    "deploy/test_deployment", "deploy/test_deployment_files", "deploy/test_equalities",
    "deploy/test_kill", "deploy/test_local_workers", "deploy/test_refusals",
    "deploy/test_secure_deployment", "deploy/test_secure_sums", "deploy/test_systemd", "plugins/test_chain",
    "plugins/test_prototypes", "server/federation/test_exchange", "server/federation/test_rounds",
    "server/report/test_live_view", "server/report/test_page", "test_callosum_entry",
)  # fmt: skip


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: what is packed as the tests are collected may hold the time of day."""
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that mostly wait for real processes go first, so that no worker waits alone at the end."""
    whole = {Path(__file__).parent / name for name in WHOLE}
    for item in items:
        if item.path.with_suffix("") in whole:
            item.add_marker(pytest.mark.whole)
    items.sort(key=lambda item: item.path.name not in ("test_deployment.py", "test_kill.py"))


@pytest.fixture(autouse=True)
def _own_process_again() -> Iterator[None]:
    """Commands set their process's umask and environment, and tests run them in this one."""
    environment, mask = dict(os.environ), os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Federation]:
    """Write a `features` federation: `federation({"pretraining.rounds": 5}, lacks=...)`."""

    def write(changes: Mapping[str, Any] | None = None, **more: Any) -> Federation:
        return write_federation(tmp_path, changes, **more)

    return write


@pytest.fixture(scope="session")
def everything() -> dict[str, Any]:
    """Changes that make a `features` study use every phase, and still end within a second."""
    return {
        "objective.targets": ["age"],  # ridge: logistic heads are most of a small study's time
        "sites.heldout": ["omega"],
        "comparisons": {"single_site": True, "pooled": True},
        "evaluation.head": False,
        "finetuning": [
            {
                "name": "dementia",
                "target": "diagnosis",
                "methods": ["pretrained/full", "scratch/full"],
                "epochs": 2,
                "learning_rates": [0.01],
            }
        ],
    }


@pytest.fixture(scope="session")
def module_federation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Federation]:
    """The same for fixtures that outlive one test."""

    def write(changes: Mapping[str, Any] | None = None, **more: Any) -> Federation:
        return write_federation(tmp_path_factory.mktemp("federation"), changes, **more)

    return write


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals of 14 mm brains, written once: `amber` and `birch` train, `elm` judges."""
    from deploy.hospitals.dataset import write_hospitals

    folder = tmp_path_factory.mktemp("hospitals")
    names = ["amber", "birch", "elm"]
    write_hospitals(
        folder / "sites", names=names, heldout=["elm"], participants=20, spacing_mm=14.0, seed=3
    )
    for name in names:
        with (folder / "sites" / name / "site.toml").open("a") as stream:
            stream.write('\n[device]\nkind = "cpu"\nthreads = 1\n')
    return folder


@pytest.fixture
def brains(hospitals: Path, tmp_path: Path) -> Callable[..., Federation]:
    """A `t1w` federation over `hospitals`: `brains({"pretraining.rounds": 2})`."""

    def write(changes: Mapping[str, Any] | None = None) -> Federation:
        (tmp_path / "sites").symlink_to(hospitals / "sites")
        return Federation(tmp_path, BRAINS, dict(changes or {}))

    return write


@pytest.fixture(autouse=True)
def _log_reaches_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that an earlier test began keeps the log of its site to itself."""
    for name in ("callosum", "callosum.site", "callosum.server"):
        monkeypatch.setattr(getLogger(name), "propagate", True)
        monkeypatch.setattr(getLogger(name), "disabled", False)
        getLogger(name).setLevel(NOTSET)


@pytest.fixture(autouse=True)
def _the_same_each_time() -> None:
    """One thread, on which bits depend, and the same draws, whatever test ran before."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
