"""A study is one checked value with a digest, and every fault in it is told with its remedy."""

from __future__ import annotations

import copy
import random
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site import Site
from common import catalogue
from common.documentation import site_keys, study_keys
from common.errors import LineageError, SettingError
from common.explain import explain
from common.network.building import arrays_of, build
from common.settings import keys
from common.study import Study, load_study, parse_study, read_resolved
from server.templates import study_template

TEXT = """
name = "tiny"
seed = 7

[data]
kind = "features"
columns = ["a", "b"]

[targets.age]
kind = "regression"
unit = "years"

[targets.sex]
kind = "binary"
classes = ["female", "male"]

[targets.state]
kind = "categorical"
classes = ["rest", "left", "right"]

[backbone]
name = "mlp"
hidden = [4]

[objective]
name = "multitask"

[pretraining]
rounds = 2

[sites]
train = ["alpha", "beta"]
heldout = ["gamma"]

[[finetuning]]
name = "first"
target = "sex"

[[finetuning]]
name = "second"
target = "state"
"""


def study(text: str = TEXT) -> Study:
    return parse_study(tomllib.loads(text), Path("study.toml"))


def fault(folder: Path, *edits: tuple[str, str]) -> str:
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    file = folder / "study.toml"
    file.write_text(text)
    with pytest.raises(SettingError) as caught:
        load_study(file)
    return str(caught.value)


FAULTS = {
    "unknown table": ("[pretraining]", "[pretrainig]", ["pretrainig", "did you mean pretraining?"]),
    "unknown key": ("rounds = 2", "round = 2", ["pretraining.round", "did you mean rounds?"]),
    "in a target": ("unit =", "units =", ["targets.age.units", "did you mean unit?"]),
    "in a task": ('target = "state"', 'targt = "state"', ["finetuning.1.targt", "mean target?"]),
    "in data": ("columns =", "colums =", ["data.colums", "did you mean columns?"]),
    "in backbone": ("hidden =", "hiden =", ["backbone.hiden", "did you mean hidden?"]),
    "in objective": ('"multitask"', '"multitask"\ntarget = []', ["objective.target", "targets?"]),
    "in sites": ("heldout =", "held_out =", ["sites.held_out", "did you mean heldout?"]),
    "type": ("rounds = 2", 'rounds = "2"', ['pretraining.rounds is "2"', "valid integer"]),
    "boolean": ("rounds = 2", "rounds = true", ["pretraining.rounds is true", "valid integer"]),
    "logarithm": (
        'unit = "years"',
        'unit = "years"\ntransform = "log"',
        ["targets.age", "transform is log, low is -1e+09 and centre is 0", "must be above 0"],
    ),
    "loss of classes": (
        'classes = ["female", "male"]',
        'classes = ["female", "male"]\nloss = "l1"',
        ["targets.sex", "transform and loss are of regression targets"],
    ),
    "range": ("rounds = 2", "rounds = -1", ["pretraining.rounds is -1", "greater than or equal to 0"]),
    "zero rate": ("rounds = 2", "learning_rate = 0.0", ["learning_rate is 0.0", "greater than 0"]),
    "nan": ("rounds = 2", "learning_rate = nan", ["learning_rate is nan", "finite"]),
    "inf": ("rounds = 2", "proximal_mu = inf", ["proximal_mu is inf", "finite"]),
    "seed": ("seed = 7", "seed = 2147483648", ["seed is 2147483648", "less than 2147483648"]),
    "name": ('"tiny"', '"Tiny"', ['name is "Tiny"', "match pattern"]),
    "name with space": ('"tiny"', '"our study"', ['name is "our study"', "match pattern"]),
    "name as path": ('"tiny"', '"../tiny"', ['name is "../tiny"', "match pattern"]),
    "site as path": ('"gamma"', '"../gamma"', ['sites.heldout.0 is "../gamma"', "match pattern"]),
    "site with line end": ('"gamma"', r'"gamma\n"', ["sites.heldout.0", "take it out"]),
    "site too long": ('"gamma"', f'"{"g" * 64}"', ["sites.heldout.0", "match pattern"]),
    "task as path": ('"first"', '"../first"', ['finetuning.0.name is "../first"', "pattern"]),
    "target as path": ("[targets.age]", '[targets."../age"]', ["targets.../age", "match pattern"]),
    "target with dot": ("[targets.age]", '[targets."a.ge"]', ["targets.a.ge", "match pattern"]),
    "no site": ('["alpha", "beta"]', "[]", ["sites: train is []", "at least one site"]),
    "both roles": ('"gamma"', '"alpha"', ["sites: alpha is listed twice"]),
    "twice": ('"beta"', '"alpha"', ["sites: alpha is listed twice"]),
    "pooled": ('"gamma"', '"pooled"', ['no site may be called "pooled"']),
    "quorum": ("heldout =", "quorum = 3\nheldout =", ["quorum is 3", "only 2 sites train"]),
    "below quorum": ("heldout =", "quorum = -1\nheldout =", ["sites.quorum is -1", "equal to 0"]),
    "one class": ('["female", "male"]', '["female"]', ["targets.sex: classes is [female]", "two"]),
    "same class": ('["female", "male"]', '["male", "male"]', ["[male, male]", "must differ"]),
    "two classes": ('"rest", "left", "right"', '"a", "b"', ["classes is [a, b]", "three or more"]),
    "no classes": ('unit = "years"', 'classes = ["x"]', ["targets.age: classes is [x]", "none"]),
    "low": ('unit = "years"', "low = 3\nhigh = 3", ["low is 3 and high is 3", "must be below"]),
    "scale": ('unit = "years"', "scale = 0", ["targets.age.scale is 0", "greater than 0"]),
    "kind of target": ('"regression"', '"regresion"', ["targets.age.kind", "'regression'"]),
    "splits": ("[sites]", "[splits]\ntest = 0.8\n[sites]", ["test is 0.8", "5 % of participants"]),
    "whole split": ("[sites]", "[splits]\ntest = 1\n[sites]", ["splits.test is 1", "less than 1"]),
    "no such target": ('target = "sex"', 'target = "sexx"', ['finetuning.0.target is "sexx"', "age"]),
    "task twice": ('"second"', '"first"', ['finetuning.1.name is "first"', "earlier"]),
    "no methods": ('"second"', '"second"\nmethods = []', ["finetuning.1.methods is []", "at least 1"]),
    "no rates": ('"second"', '"second"\nlearning_rates = []', ["learning_rates", "at least 1"]),
    "method": ('"second"', '"second"\nmethods = ["magic"]', ['methods.0 is "magic"', "pretrained"]),
    "method without a start": (
        '"second"', '"second"\nmethods = ["full"]', ['methods.0 is "full"', "pretrained"],
    ),
    "method twice": (
        '"second"', '"second"\nmethods = ["linear", "linear"]',
        ["finetuning.1: methods lists something twice"],
    ),
    "participants twice": (
        '"second"', '"second"\nparticipants = [5, 5]', ["participants lists something twice"],
    ),
    "draws of everybody": (
        '"second"', '"second"\ndraws = 5', ["draws is 5", "participants must say how many"],
    ),
    "then": ('"second"', '"second"\nthen = ["publish"]', ["then.0", "'send' or 'cross'"]),
    "sampling": (
        "rounds = 2", 'sampling = "evenly"', ['pretraining.sampling is "evenly"', "match pattern"],
    ),
    "sampling of a number": (
        "rounds = 2", 'sampling = "classes:age"', ['"classes:age"', "classes are sex, state"],
    ),
    "sampling of nothing": (
        '"second"', '"second"\nsampling = "classes:sexx"',
        ['finetuning.1.sampling is "classes:sexx"', "classes are sex, state"],
    ),
    "weight": (
        "[sites]", '[aggregation]\nweight = "labels"\n[sites]',
        ['aggregation.weight is "labels"', "'scans' or 'participants'"],
    ),
    "warm-up": ("rounds = 2", "warmup = 1", ["pretraining.warmup is 1", "less than 1"]),
    "layer decay": ("rounds = 2", "layer_decay = 0", ["layer_decay is 0", "greater than 0"]),
    "augmentation": (
        "[sites]", '[[augmentation]]\nname = "shfit"\n[sites]',
        ["augmentation.0.name", "did you mean shift?"],
    ),
    "no augmentation's name": (
        "[sites]", "[[augmentation]]\n[sites]", ["augmentation.0.name is missing", "flip, gamma"],
    ),
    "in an augmentation": (
        "[sites]", '[[augmentation]]\nname = "shift"\nvoxel = 2\n[sites]',
        ["augmentation.0.voxel", "did you mean voxels?"],
    ),
    "start without arrays": (
        "[sites]", '[start]\nstudy = "x"\ncontributors = []\n[sites]', ["start.arrays is missing"],
    ),
    "start without contributors": (
        "[sites]", f'[start]\nstudy = "x"\narrays = "{"0" * 64}"\n[sites]',
        ["start.contributors is missing"],
    ),
    "start from a file": (
        "[sites]", '[start]\nstudy = "x"\narrays = "x.safetensors"\ncontributors = []\n[sites]',
        ['start.arrays is "x.safetensors"', "match pattern"],
    ),
    "objective's target": (
        '"multitask"', '"multitask"\ntargets = ["agee"]', ["objective.targets", "agee", "age, sex"],
    ),
    "objective": ('"multitask"', '"multitaks"', ["objective.name", "did you mean multitask?"]),
    "backbone": ('"mlp"', '"mpl"', ["backbone.name", '"mpl" is not installed', "mean mlp?"]),
    "strange backbone": ('"mlp"', '"zzz"', ["backbone.name", "installed: linear, mlp, sfcn"]),
    "kind": ('"features"', '"feature"', ["data.kind", "did you mean features?"]),
    "no backbone name": ('name = "mlp"\n', "", ["backbone.name is missing", "linear, mlp, sfcn"]),
    "no kind": ('kind = "features"\n', "", ["data.kind is missing", "features, synthetic-t1w"]),
    "columns twice": ('["a", "b"]', '["a", "a"]', ["columns lists a more than once"]),
    "no columns": ('["a", "b"]', "[]", ["data.columns is []", "at least 1"]),
    "empty column": ('["a", "b"]', '["a", " "]', ["columns holds an empty name"]),
    "widths": ("hidden = [4]", "hidden = [0]", ["backbone.hidden.0 is 0", "equal to 1"]),
    "dropout": ("hidden = [4]", "dropout = 1", ["backbone.dropout is 1", "less than 1"]),
    "fedavg": ("[sites]", "[aggregation]\nlearning_rate = 2\n[sites]", ["learning_rate is 2", "1,"]),
    "confidence": ("[sites]", "[evaluation]\nconfidence = 95\n[sites]", ["confidence is 95", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_study_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    """A study is written by people who did not write Callosum."""
    old, new, words = FAULTS[name]
    message = fault(tmp_path, (old, new))
    for word in words:
        assert word in message
    assert "study.toml" in message
    assert ", line " in message


@pytest.mark.parametrize("table", ["data", "targets", "backbone", "objective", "sites"])
def test_a_missing_table_is_named(table: str) -> None:
    """A half-copied study must not run with silent defaults for what it is about."""
    tables = {key: value for key, value in tomllib.loads(TEXT).items() if key != table}
    with pytest.raises(SettingError, match=rf"^{table} is missing; it is required \(s\.toml\)"):
        parse_study(tables, Path("s.toml"))
    with pytest.raises(SettingError, match=rf"^{table}.* \(s\.toml\)"):
        parse_study({**tables, table: 3}, Path("s.toml"))


def test_a_study_leaves_a_target_to_pretrain(tmp_path: Path) -> None:
    """Fine-tuning tasks keep their targets out of pretraining; all of them would leave no loss."""
    only = ('[targets.age]\nkind = "regression"\nunit = "years"\n', "")
    assert "one must be left to pretrain" in fault(tmp_path, only)
    listed = TEXT.replace(only[0], "").replace('"multitask"', '"multitask"\ntargets = ["sex"]')
    assert list(study(listed).pretraining_targets) == ["sex"]


@pytest.mark.parametrize(
    ("data", "backbone", "words"),
    [
        (
            'kind = "t1w"\nshape = [16, 16, 16]\nspacing_mm = 8.0',
            'name = "sfcn"',
            "sfcn with 5 blocks needs volumes of at least 32 voxels a side; .*16, 16, 16",
        ),
        (
            'kind = "t1w"\nshape = [16, 16, 16]\nspacing_mm = 8.0',
            'name = "linear"',
            "linear takes tables of features, or connectomes; .*16, 16, 16",
        ),
        ('kind = "features"\ncolumns = ["a"]', 'name = "sfcn"', "sfcn .* needs volumes"),
    ],
)
def test_a_backbone_that_does_not_fit_the_data_is_refused_in_words(
    data: str, backbone: str, words: str
) -> None:
    """Depth against grid is arithmetic that the file's author has not done."""
    text = TEXT.replace('kind = "features"\ncolumns = ["a", "b"]', data)
    text = text.replace('name = "mlp"\nhidden = [4]', backbone)
    with pytest.raises(SettingError, match=f"backbone: {words}"):
        build(study(text), seed=0)


@pytest.mark.parametrize("name", ["type", "keys", "training", "forward"])
def test_a_target_named_like_a_part_of_pytorch_is_refused_in_words(name: str) -> None:
    """Heads are kept by their target's name; the refusal must not be PyTorch's traceback."""
    text = TEXT.replace("[targets.age]", f"[targets.{name}]")
    with pytest.raises(SettingError, match=rf"targets\.{name} .*rename"):
        build(study(text), seed=0)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Place of every plain value in nested tables."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*at, key))
        else:
            yield (*at, key)


def changed(value: Any, at: tuple[Any, ...]) -> Any:
    """The tables with the value at one place replaced by its next candidates, until one is valid."""
    for candidate in CANDIDATES:
        tables = copy.deepcopy(value)
        inner = tables
        for key in at[:-1]:
            inner = inner[key]
        old = inner[at[-1]]
        if old == candidate and isinstance(old, bool) == isinstance(candidate, bool):
            continue
        inner[at[-1]] = candidate
        try:
            return parse_study(tables, Path("s.json"))
        except SettingError:
            continue
    return None


GRID = "learning_rates = [0.1, 0.2, 0.4]\nweight_decays = [0.0, 0.1, 0.2]"  # as protocols need it
EVERYTHING = (
    TEXT.replace('unit = "years"', 'unit = "years"\nlow = 1.0\ncentre = 40.0')
    .replace('name = "mlp"', 'name = "mlp"\nharmonisation = "combat"')
    .replace('"second"', f'"second"\n{GRID}\nparticipants = [5]\nthen = ["judge"]')
    .replace('"first"', f'"first"\n{GRID}\nparticipants = [5]')
    .replace(
        "[sites]",
        f"""
[start]
study = "earlier"
arrays = "{"0" * 64}"
contributors = ["eta"]
cohorts = ["{"1" * 64}"]

[[augmentation]]
name = "noise"

[aggregation]
server_optimiser = "fedavgm"

[evaluation]
calibration = [20]

[sites]""",
    )
    + """
[[protocols]]
name = "draws"
task = "first"
scheme = "resampled"
sizes = [20]
"""
)

CANDIDATES: list[Any] = [
    True, False, 1, 2, 3, 500, 0.3, 0.6, 2.5, "zeta", "age", "sex", "sgd", "constant", "fedadam",
    "groupnorm", "reestimated", "squared", "linear", "regression", ["zeta"], ["age"],
    "participants", "kept", "cosine", "all", "pretrained/lora", "explain", ["explain"], "2" * 64, "lora",
    "participant", "layers", "relevance", "squared-hinge", "log", "l1", "fixed", "second", "subjects", 20,
    {"age": {"low": -2e9, "high": 2e9, "step": 1e9, "sigma": 1e9}},
]  # fmt: skip


def test_the_digest_changes_with_every_value() -> None:
    """A site approves a digest: whatever it would be asked to do differently must show in it."""
    first = study(EVERYTHING)
    whole = first.model_dump(mode="json")
    unmoved, digests = [], {first.digest}
    places = list(leaves(whole))
    for at in places:
        other = changed(whole, at)
        if other is None:
            unmoved.append(".".join(map(str, at)))
        else:
            assert other.digest not in digests, at
            digests.add(other.digest)
    assert len(places) > 120
    # these have one valid value beside the keys that they stand with
    tied = {"backbone.name", "objective.name", "augmentation.0.name", "targets.age.classes"}
    tied |= {"backbone.harmonisation", "finetuning.0.name", "comparisons.targets"}
    tied |= {"protocols.0.at", "protocols.0.each_class", "secure_sums.on"}  # two sites are too few
    tied |= {f"targets.{name}.{key}" for name in ("sex", "state") for key in ("transform", "loss")}
    assert {key for key in unmoved if not key.endswith(".kind")} == tied


def test_where_the_checkpoint_lies_is_no_part_of_the_digest() -> None:
    """Its bytes are, by their own digest; the coordinator may move the file."""
    moved = EVERYTHING.replace(
        'study = "earlier"', 'study = "earlier"\nfile = "../final.safetensors"'
    )
    assert study(moved).start.file == "../final.safetensors"
    assert study(moved).digest == study(EVERYTHING).digest


@pytest.mark.parametrize("resolved", [False, True])
def test_a_site_that_made_the_start_cannot_be_asked_to_judge(
    tmp_path: Path, resolved: bool
) -> None:
    """A judge of its own work; refused with a code of its own, before anything is loaded."""
    text = EVERYTHING.replace('heldout = ["gamma"]', 'heldout = ["gamma", "eta"]')
    if resolved:
        table = {**study(EVERYTHING).model_dump(mode="json"), "sites": tomllib.loads(text)["sites"]}
        with pytest.raises(LineageError) as caught:
            read_resolved(table, Path("study.json"))
    else:
        text = text.replace('name = "mlp"', 'name = "not-installed-here"')
        (tmp_path / "study.toml").write_text(text)
        with pytest.raises(LineageError) as caught:
            load_study(tmp_path / "study.toml")
        assert ", line " in str(caught.value)
    assert caught.value.exit_code == 8
    assert "eta contributed to the checkpoint that tiny begins from" in str(caught.value)
    assert "take eta from sites.heldout" in str(caught.value)


def test_the_digest_is_of_the_content_and_not_of_the_file() -> None:
    """Two people who agree must find the same digest, whatever their editors do."""
    lines = TEXT.replace(" = ", "   =  ").replace(
        "[targets.sex]", "\n# a remark\n[targets.sex] # x"
    )
    blocks = ("\n" + TEXT.strip()).split("\n\n")
    random.Random(0).shuffle(tail := blocks[1:-2])  # entries of [[finetuning]] have an order
    moved = "\n\n".join([blocks[0], *tail, *blocks[-2:]])
    spelled = TEXT + "\n[evaluation]\nconfidence = 0.95\nhead = true\n"
    inline = TEXT.replace('[targets.age]\nkind = "regression"\nunit = "years"\n', "").replace(
        "seed = 7", 'seed = 7\ntargets.age = {unit = "years", kind = "regression"}'
    )
    inline = inline.replace("[targets.sex]", "[targets.sex]", 1)
    assert study(lines).digest == study().digest
    assert moved != TEXT.strip()
    assert study(moved).digest == study().digest
    assert study(spelled).digest == study().digest
    assert (
        study(TEXT.replace('unit = "years"', 'unit = "years"\ncentre = 0')).digest == study().digest
    )


def test_one_digest_is_one_network() -> None:
    """The order of tables is not in the digest, so it must not be in the drawn weights either."""
    text = TEXT.replace('[targets.sex]\nkind = "binary"\nclasses = ["female", "male"]\n', "")
    text = text.replace("[targets.age]", '[targets.sex]\nkind = "binary"\n'
                        'classes = ["female", "male"]\n\n[targets.age]')  # fmt: skip
    text = text[: text.index("[[finetuning]]")]
    one = study(TEXT[: TEXT.index("[[finetuning]]")])
    other = study(text)
    assert list(one.targets) != list(other.targets)
    assert one.digest == other.digest
    left, right = arrays_of(build(one, seed=1)), arrays_of(build(other, seed=1))
    assert list(left) == list(right)
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", catalogue.names("kinds"))
def test_a_study_survives_its_own_json(kind: str) -> None:
    """A run folder keeps the study as JSON and resumes only the same digest."""
    first = parse_study(tomllib.loads(study_template("round-trip", kind)), Path("a.toml"))
    table = first.model_dump(mode="json")
    assert parse_study(table, Path("study.json")).digest == first.digest
    ordered = {key: table[key] for key in sorted(table)}
    assert parse_study(ordered, Path("study.json")).digest == first.digest


@pytest.mark.parametrize("kind", catalogue.names("kinds"))
def test_the_study_template_is_a_study(tmp_path: Path, kind: str) -> None:
    """What a newcomer is handed must work before the first edit."""
    file = tmp_path / "new.toml"
    file.write_text(study_template("new", kind))
    found = load_study(file)
    assert found.data.kind == kind
    assert found.digest in explain(found)


@pytest.mark.parametrize("model", [Study, Site], ids=["study", "site"])
def test_every_key_is_described_by_a_sentence(model: type[Study | Site]) -> None:
    """The tables in the manuals are made from these; a blank cell is a support request."""
    for key, _, text in keys(model):
        if key != "file":
            assert text.endswith("."), key
            assert len(text) > 8, key


@pytest.mark.parametrize(
    ("shelf", "name"),
    [
        (shelf, name)
        for shelf in ("kinds", "backbones", "objectives", "augmentations")
        for name in catalogue.names(shelf)  # type: ignore[arg-type]
    ],
)
def test_every_key_of_a_plugin_is_described_by_a_sentence(shelf: Any, name: str) -> None:
    """Plug-ins are documented by the same generator."""
    found = catalogue.load(shelf, name)
    models = [found.Study, found.Site] if shelf == "kinds" else [found.Settings]
    for model in models:
        described = list(keys(model))
        assert described
        for key, _, text in described:
            assert text.endswith("."), f"{name}.{key}"


@pytest.mark.parametrize("write", [study_keys, lambda: site_keys(Site)], ids=["study", "site"])
def test_tables_of_keys_are_whole(write: Callable[[], str]) -> None:
    """A bar in a description would break a row of the printed table."""
    lines = write().splitlines()
    assert len(lines) > 15
    assert all(line.count(" | ") == 2 and line.endswith(" |") for line in lines[2:])


@pytest.mark.parametrize(
    ("given", "weight"),
    [
        ({}, "participants"),
        ({"aggregation": {"server_optimiser": "fedadam"}}, "participants"),
        ({"aggregation": {"weight": "scans"}}, "scans"),
    ],
)
def test_a_kind_says_what_its_sites_are_weighed_by_unless_the_study_does(
    given: dict[str, Any], weight: str
) -> None:
    """A run has hundreds of volumes: one long one must not outweigh many people."""
    table = {
        "name": "runs",
        "data": {"kind": "bold", "shape": [8, 9, 8], "spacing_mm": 8.0},
        "targets": {"state": {"kind": "categorical", "classes": ["a", "b", "c"]}},
        "backbone": {"name": "deeplight"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["here"]},
        **given,
    }
    study = parse_study(table, Path("s.toml"))
    assert study.aggregation.weight == weight
    again = parse_study(study.model_dump(mode="json"), Path("s.toml"))
    assert again.digest == study.digest
