"""Whether a study can be trained privately: where nobody has a gradient of her own, it cannot."""

from __future__ import annotations

from typing import Any, Final

from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

from common.errors import SettingError
from common.network.building import resting
from common.study import Study

_HOOKS: Final = {
    "by_sums": "is settled by sums, on which there is no noise",
    "coupled": "makes a person's loss depend on the others of a batch: no gradient is hers alone",
    "gradients": "makes gradients of its own, of which nobody knows that they are cut down",
    "after_step": "keeps something from step to step (a queue, a teacher), past the noise",
}


def check_private(study: Study, network: Any) -> None:
    """Refuse a private study that would protect nobody, with the key to change.

    `network` may be an outline.

    Raises
    ------
    SettingError
    """
    kind = type(network)
    for hook, reason in _HOOKS.items():
        if getattr(network, hook, False):
            raise _unfit("objective.name", f"{kind.__name__} {reason}")
    _check_steps(study)
    _check_statistics(study, network)
    for number, task in enumerate(study.finetuning):
        if "send" in task.then:
            raise _unfit(
                f"finetuning.{number}.then",
                "send lets out all that tuning trained, without noise; take it from the list",
            )


def _check_steps(study: Study) -> None:
    steps = study.pretraining
    for key in ("mixup", "cutmix"):
        if value := getattr(steps, key):
            raise _unfit(
                f"pretraining.{key}", f"{value:g} mixes people with each other; 0 does not"
            )
    if steps.sharpness:
        raise _unfit(
            "pretraining.sharpness",
            f"{steps.sharpness:g} takes a second gradient where everybody's first one leads, which "
            "no epsilon counts; 0 takes one",
        )
    if steps.sampling.startswith("classes:"):
        raise _unfit(
            "pretraining.sampling",
            f'"{steps.sampling}" draws people by their labels, and by how many others have the '
            'same; "scans" leaves each person her own chance',
        )


def _check_statistics(study: Study, network: Any) -> None:
    rests = resting(network)
    for place, module in network.named_modules():
        if not isinstance(module, _NormBase | _SpectralNorm) or place in rests:
            continue
        if isinstance(module, _BatchNorm) or any(True for _ in module.buffers(recurse=False)):
            raise _unfit(
                "aggregation.normalisation",
                f'"{study.aggregation.normalisation}" leaves {place} ({type(module).__name__}), '
                'whose statistics mix the people of a batch; "groupnorm" has none',
            )


def _unfit(key: str, reason: str) -> SettingError:
    return SettingError(f'{key}: {reason} (privacy.unit is "participant")')
