"""Where a site's tuned networks look in each of its people, for this site alone.

What leaves a site are means over people (`explanation`); these are maps of one person each. They go
into a folder that is this user's alone, and no order asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from client.data.anatomy.glass_brain import drawn, image_of, in_a_path, packed
from client.data.cohort import Cohort
from client.learning.explanation import explained_person
from client.learning.finetuning import Tuning
from client.learning.training import choose_device
from client.learning.tuned_models import KeptModel, TunedModels, kept_models
from client.site import Site
from common.comparisons import CLOSED_FORM, brings_arrays
from common.errors import DataError, SettingError
from common.network.building import arrays_of
from common.protocol.orders import EMPTY, Order
from common.runtime.durable import write_atomically
from common.runtime.progress import say
from common.study import Study, with_plugins

_ANY: Final = "0" * 64


def write_person_maps(
    study: Study, site: Site, cohort: Cohort, out: Path, people: Iterable[str], run: str = ""
) -> Iterator[Path]:
    """Write maps of `people`, or of all test participants, by every tuned network kept here.

    Runs are told by how their folder's name begins, as `callosum-site models` shows it.

    Raises
    ------
    SettingError
        If the study is not of volumes, or no such model is kept here.
    DataError
        If somebody is not among the site's people.
    """
    if with_plugins(study).layout != "volume":
        raise SettingError(f"{study.name} is of no volumes; only these can be drawn into a brain")
    test = {cohort.participants[i] for i in cohort.indices("test", study.splits)}
    asked = sorted(people) or sorted(test)
    strangers = sorted(set(asked) - set(cohort.participants))
    if strangers:
        raise DataError(f"{strangers[0]} is not among the people whom {site.name} has prepared")
    tasks = {task.name for task in study.finetuning}
    kept = [
        model
        for model in kept_models(site.state / "runs")
        if model.task in tasks and model.run.startswith(run) and model.method not in CLOSED_FORM
    ]
    if not kept:
        raise SettingError(
            f"no tuned network of {study.name} is kept here; `callosum-site models` lists what is"
        )
    for model in kept:
        try:
            yield from _of_model(study, site, cohort, out, asked, model)
        except SettingError as error:  # of this model; others may be whole
            say(str(error))


def _of_model(
    study: Study, site: Site, cohort: Cohort, out: Path, people: Iterable[str], kept: KeptModel
) -> Iterator[Path]:
    order = Order.model_validate({
        "kind": "explain", "study": study.digest, "run": _ANY, "site": site.name,
        "task": kept.task, "init": kept.init, "method": kept.method, "k": kept.k,
        "repeat": kept.repeat, "arrays": EMPTY,
    })  # fmt: skip
    models = TunedModels(site.state / "runs" / kept.run)
    tuning = Tuning(study, site, cohort, order, {}, models)
    network, task = _whole(tuning, models, order), tuning.task
    way = f"{kept.init}-{kept.method}{f'-k{kept.k}' if kept.k else ''}-repeat{kept.repeat}"
    folder = out / kept.run[:12] / kept.task / way
    device = choose_device(site.device.kind)
    for person in people:
        for group, volume in explained_person(network, cohort, person, task, device):
            image = image_of(volume, getattr(study.data, "spacing_mm", 1.0), "map of one person")
            number = task.target.classes.index(group) + 1 if group else 1  # names may be alike
            path = folder / in_a_path(person) / f"{number:02d}-{in_a_path(group)}.nii.gz"
            write_atomically(path, packed(image))
            if getattr(study.data, "align", "") == "world" and volume.any():
                write_atomically(path.with_name(path.name.replace(".nii.gz", ".png")), drawn(image))
            yield path


def _whole(tuning: Tuning, models: TunedModels, order: Order) -> Any:
    """The tuned network, if all of it is kept here."""
    model = models.find(order, order.repeat)
    assert model is not None
    try:
        network = tuning.network(model, order.repeat)
    except (KeyError, ValueError):
        raise SettingError(
            f"a model of {order.task} is kept here that is of another network than the study's; "
            "name the study's own run (--run)"
        ) from None
    lacking = set(arrays_of(network)) - set(model.arrays)
    if brings_arrays(order.init) and lacking:
        raise SettingError(
            f"{order.task} by {order.init}/{order.method} trained a part of the network; the "
            f"shared rest came with the order and is not kept here: {order.init}/full is kept whole"
        )
    return network
