"""The commented study file that `callosum study init` writes; every key is there to be edited."""

from __future__ import annotations

from typing import Final

from common.errors import SettingError
from common.study import check_name

_DATA: Final = {
    "t1w": """[data]
kind = "t1w"              # T1-weighted scans in BIDS folders
shape = [96, 112, 96]     # voxels of the common grid: right, anterior, superior
spacing_mm = 2.0
align = "centre"          # "world" for scans that are registered to MNI152 already
intensity = "zscore"      # inside the head
""",
    "features": """[data]
kind = "features"         # a table of regional volumes or thicknesses
columns = ["Left-Hippocampus", "Right-Hippocampus"]   # exact names; sites may rename theirs
""",
}
_BACKBONE: Final = {
    "t1w": """[backbone]
name = "sfcn"
channels = [32, 64, 128, 256, 256]   # width and depth; each block halves the volume
top = 64
dropout = 0.2
""",
    "features": """[backbone]
name = "mlp"              # or "linear"
hidden = [64, 32]
""",
}
_REST: Final = """# {name}: what our consortium agrees to do; see: callosum study check {name}.toml
# Every key and its default: callosum study keys
name = "{name}"
seed = 1                  # all chance comes from it

{data}
# Targets. Centre and scale are constants of the study, the same at every site.
[targets.age]
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

[[finetuning]]
name = "diagnosis"
target = "diagnosis"
inits = ["transfer", "frozen", "scratch", "linear"]
epochs = 8
learning_rates = [3e-4, 1e-3]

[evaluation]
bootstrap = 1000
confidence = 0.95
"""


def study_template(name: str, kind: str) -> str:
    """The text of a new study file.

    Raises
    ------
    SettingError
        If there is no template for `kind`, or no study may have that name.
    """
    check_name(name)
    if kind not in _DATA:
        raise SettingError(f'kind is "{kind}"; there are templates for {", ".join(_DATA)}')
    return _REST.format(name=name, data=_DATA[kind], backbone=_BACKBONE[kind])
