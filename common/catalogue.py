"""The names a study may use for a backbone, an objective, a data kind or an augmentation.

Adding one is one new file and one line here. Software installed beside Callosum adds its own by
entry points (groups `callosum.backbones` and so on), so a hospital runs only code that it has
installed itself; no name in a study causes an import from elsewhere.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Literal

from common.errors import SettingError

Shelf = Literal["backbones", "objectives", "kinds", "augmentations"]

_OURS: Final[dict[Shelf, dict[str, str]]] = {
    "backbones": {
        "linear": "common.backbones.linear:Linear",
        "mlp": "common.backbones.mlp:Mlp",
        "sfcn": "common.backbones.sfcn:Sfcn",
        "densenet": "common.backbones.densenet:DenseNet",
        "resnet": "common.backbones.resnet:ResNet",
        "swin": "common.backbones.swin:Swin",
        "vit": "common.backbones.vit:Vit",
        "nit": "common.backbones.nit:Nit",
        "minit": "common.backbones.minit:Minit",
        "deeplight": "common.backbones.deeplight:DeepLight",
        "lcm": "common.backbones.lcm:Lcm",
        "bnt": "common.backbones.bnt:Bnt",
    },
    "objectives": {
        "multitask": "common.objectives.multitask:Multitask",
        "simclr": "common.objectives.simclr:Simclr",
        "y-aware": "common.objectives.y_aware:YAware",
        "mae": "common.objectives.mae:Mae",
        "simmim": "common.objectives.simmim:Simmim",
        "joint": "common.objectives.joint:Joint",
        "ridge": "common.objectives.ridge:Ridge",
        "lcm": "common.objectives.lcm:Lcm",
    },
    "augmentations": {
        "affine": "common.augmentations.affine:Affine",
        "bias-field": "common.augmentations.bias_field:BiasField",
        "blur": "common.augmentations.blur:Blur",
        "crop": "common.augmentations.crop:Crop",
        "cutout": "common.augmentations.cutout:Cutout",
        "flip": "common.augmentations.flip:Flip",
        "gamma": "common.augmentations.gamma:Gamma",
        "noise": "common.augmentations.noise:Noise",
        "scale": "common.augmentations.scale:Scale",
        "shift": "common.augmentations.shift:Shift",
    },
    "kinds": {
        "bold": "common.kinds.bold:Bold",
        "connectome": "common.kinds.connectome:Connectome",
        "features": "common.kinds.features:Features",
        "synthetic-t1w": "common.kinds.synthetic_t1w:SyntheticT1w",
        "synthetic-video": "common.kinds.synthetic_video:SyntheticVideo",
        "t1w": "common.kinds.t1w:T1w",
        "video": "common.kinds.video:Video",
    },
}


def names(shelf: Shelf) -> list[str]:
    """All names on a shelf: ours first, then those of installed packages."""
    installed = {point.name for point in entry_points(group=f"callosum.{shelf}")}
    return [*_OURS[shelf], *sorted(installed - set(_OURS[shelf]))]


def own_modules() -> list[str]:
    """Modules of everything that Callosum itself brings."""
    return sorted(place.partition(":")[0] for shelf in _OURS.values() for place in shelf.values())


def module_of(shelf: Shelf, name: str) -> str:
    """The module that `name` lives in, without importing it.

    Raises
    ------
    SettingError
        If nothing of that name is installed; the message lists what is.
    """
    if name in _OURS[shelf]:
        return _OURS[shelf][name].partition(":")[0]
    for point in entry_points(group=f"callosum.{shelf}"):
        if point.name == name:
            return point.module
    raise _not_installed(shelf, name)


def load(shelf: Shelf, name: str) -> Any:
    """The class that `name` stands for.

    Raises
    ------
    SettingError
        If nothing of that name is installed; the message lists what is.
    """
    if name in _OURS[shelf]:
        module, _, attribute = _OURS[shelf][name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=f"callosum.{shelf}"):
        if point.name == name:
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise SettingError(f'"{name}" ({point.value}) cannot be loaded: {error}') from None
    raise _not_installed(shelf, name)


def _not_installed(shelf: Shelf, name: str) -> SettingError:
    near = difflib.get_close_matches(name, names(shelf), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"installed: {', '.join(names(shelf))}"
    return SettingError(f'{shelf[:-1]} "{name}" is not installed; {hint}')
