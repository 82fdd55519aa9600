"""The commented study file that `callosum study init` writes; every key is there to be edited."""

from __future__ import annotations

import tomllib
from typing import Any, Final

from common import catalogue
from common.examples import example, toml
from common.settings import with_tuples
from common.study import check_name

_BACKBONES: Final = {"table": "mlp", "volume": "sfcn", "matrix": "mlp"}  # to begin with, by layout
_REST: Final = """# {name}: what our consortium agrees to do; see: callosum study check {name}.toml
# Every key and its default: callosum study keys
name = "{name}"
seed = 1                  # all chance comes from it

{data}
# Targets. Centre and scale are constants of the study, the same at every site.
{targets}
{backbone}
[objective]
name = "multitask"        # all targets that no fine-tuning task is about

[pretraining]
rounds = 30
local_epochs = 1
batch_size = 8
optimiser = "adamw"
learning_rate = 1e-3      # of the first round; falls along a cosine
weight_decay = 1e-3
proximal_mu = 0.0         # above 0: FedProx

[aggregation]
server_optimiser = "fedavg"    # fedavgm, fedadam, fedyogi, fedadagrad
normalisation = "average"      # silobn, fedbn, groupnorm

[sites]
train = ["hospital-a", "hospital-b", "hospital-c"]
heldout = ["hospital-d"]       # judges, never contributes
quorum = 2                     # fewest sites for a round to count; a smaller round is DEGRADED
time_limit_s = 3600

[splits]                       # by participant, the same in every study with this salt
salt = "{name}"
validation = 0.15
test = 0.2

[comparisons]
single_site = true
pooled = true                  # only where one person may read all data (simulate)

{tasks}[evaluation]
bootstrap = 1000
confidence = 0.95
"""

_TARGETS: Final = """[targets.age]
kind = "regression"
unit = "years"
centre = 50.0
scale = 18.0
low = 0.0                 # values outside are refused as impossible
high = 120.0

[targets.sex]
kind = "binary"
classes = ["female", "male"]   # the second is the positive class
weight = 0.5

[targets.diagnosis]
kind = "binary"
classes = ["control", "patient"]
"""
_TASKS: Final = """[[finetuning]]
name = "diagnosis"
target = "diagnosis"
methods = ["pretrained/full", "pretrained/frozen", "scratch/full", "linear"]   # lora, adapters, ...
epochs = 8
learning_rates = [3e-4, 1e-3]

"""


def study_template(name: str, kind: str) -> str:
    """The text of a new study file, for any data kind that is installed.

    Raises
    ------
    SettingError
        If no such kind is installed, or no study may have that name.
    """
    check_name(name)
    found = catalogue.load("kinds", kind)
    data = example(found.Study, "data", kind=kind)
    targets = _targets(found)
    return _REST.format(
        name=name,
        data=data,
        targets=targets or _TARGETS,
        backbone=_backbone(found, data),
        tasks="" if targets else _TASKS,
    )


def _targets(kind: Any) -> str:
    """The tables of the targets that a kind comes with; "" without any."""
    tables = (
        "\n".join([f"[targets.{name}]", *(f"{key} = {toml(value)}" for key, value in keys.items())])
        for name, keys in getattr(kind, "targets", {}).items()
    )
    return "".join(f"{table}\n\n" for table in tables).removesuffix("\n")


def _backbone(kind: Any, data: str) -> str:
    """A backbone that takes the kind's layout, or the names of those that are installed."""
    try:
        layout = kind.layout(kind.Study.model_validate(with_tuples(tomllib.loads(data)["data"])))
    except ValueError:
        layout = "other"
    name = _BACKBONES.get(layout)
    if name is None:
        names = ", ".join(catalogue.names("backbones"))
        return f'[backbone]\nname = ""                        # one of: {names}\n'
    return example(catalogue.load("backbones", name).Settings, "backbone", name=name)
