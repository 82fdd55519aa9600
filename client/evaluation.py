"""A held-out site judges a model: as it is, and with a head of the site's own, on its own scans.

Beside the model stand those that know nothing: the training sites' mean and the site's own. What the
model predicted is kept at the site, so that the next model is compared on the same participants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.linear import Features, backbone_features, choose, fit, regional_features
from client.measuring import difference, measure
from client.site import Site
from client.training import choose_device, predict, reestimate_statistics
from common.errors import LineageError, Refusal
from common.network import seed_of
from common.orders import Measurement, Order
from common.study import Study, Target
from common.wire import open_arrays, write_arrays

_FOLDS = 5
_WITH_HEAD = ("federated", "pooled")  # a head on every single-site model would tell little


def evaluate(
    study: Study, site: Site, cohort: Cohort, order: Order, network: Any, folder: Path
) -> list[Measurement]:
    """Measure every pretraining target that the site has labels for."""
    if site.name in order.lineage:
        raise LineageError(f"{site.name} contributed to {order.model}")
    device = choose_device(site.device.kind)
    everyone = np.arange(len(cohort.participants))
    reestimated = study.evaluation.statistics == "reestimated"
    if reestimated or study.aggregation.normalisation == "silobn":
        reestimate_statistics(network, cohort, everyone, device)
    predicted = predict(network, cohort, everyone, device)
    kept = {name: values.astype(np.float32) for name, values in predicted.items()}
    write_arrays(folder / "predictions" / f"{order.model}.safetensors", kept, {})
    rows: list[Measurement] = []
    for name, values in predicted.items():
        labelled = everyone[~np.isnan(cohort.labels[name])]
        if len(labelled) < 2:
            continue
        rows += measure(study, site, cohort, order, name, labelled, values[labelled])
        for rival in order.against:
            theirs = _kept(folder, rival, name)
            if theirs is not None and theirs.shape == values.shape:
                rows += difference(
                    study, site, cohort, order, name, labelled, values[labelled],
                    theirs[labelled], rival,
                )  # fmt: skip
    if order.model == "federated":
        rows += _baselines(study, site, cohort, order)
    if study.evaluation.head and order.model in _WITH_HEAD:
        features = backbone_features(network, cohort, device)
        rows += _own_head(study, site, cohort, order, features, f"{order.model}+head")
    return rows


def _baselines(study: Study, site: Site, cohort: Cohort, order: Order) -> list[Measurement]:
    """The training sites' mean, this site's own mean, and a linear model of this site's own."""
    rows: list[Measurement] = []
    for name, target in study.pretraining_targets.items():
        labelled = np.flatnonzero(~np.isnan(cohort.labels[name]))
        if target.kind != "regression" or len(labelled) < 2:
            continue
        label = cohort.labels[name][labelled].astype(np.float64)
        if name in order.constants:
            constant = np.full(len(labelled), order.constants[name])
            rows += measure(
                study, site, cohort, order, name, labelled, constant, model="training-mean"
            )
        others = (label.sum() - label) / (len(label) - 1)  # leaving each scan's own label out
        rows += measure(study, site, cohort, order, name, labelled, others, model="site-mean")
    try:
        regions = regional_features(cohort)
    except Refusal:
        return rows
    return rows + _own_head(study, site, cohort, order, regions, "site-linear")


def _own_head(
    study: Study, site: Site, cohort: Cohort, order: Order, features: Features, model: str
) -> list[Measurement]:
    """Cross-fitted linear heads: every participant is predicted by a head that never saw her."""
    rows: list[Measurement] = []
    for name, target in study.pretraining_targets.items():
        labelled = np.flatnonzero(~np.isnan(cohort.labels[name]))
        predicted = _cross_fitted(study, site, cohort, name, target, features, labelled)
        if predicted is not None:
            rows += measure(study, site, cohort, order, name, labelled, predicted, model=model)
    return rows


def _cross_fitted(
    study: Study,
    site: Site,
    cohort: Cohort,
    name: str,
    target: Target,
    features: Features,
    labelled: NDArray[np.int64],
) -> NDArray[np.float64] | None:
    """Predictions of the labelled samples; None where a fold cannot be fitted."""
    label = cohort.labels[name]
    fold = _folds(study, site, cohort, labelled, label[labelled])
    shape = (len(labelled), target.outputs) if target.outputs > 1 else (len(labelled),)
    predicted = np.zeros(shape)
    for number in range(_FOLDS):
        held, rest = labelled[fold == number], labelled[fold != number]
        inner = fold[fold != number]
        pairs = [(rest[inner != other], rest[inner == other]) for other in np.unique(inner)]
        if not len(held):
            continue
        if not all(_fittable(target, label[part]) for part, _ in [*pairs, (rest, held)]):
            return None
        model = fit(target, features, label, rest, choose(target, features, label, pairs))
        predicted[fold == number] = model.predict(features, held)
    return predicted


def _folds(
    study: Study,
    site: Site,
    cohort: Cohort,
    labelled: NDArray[np.int64],
    label: NDArray[np.float32],
) -> NDArray[np.int64]:
    """A fold for each sample, the same for all of a participant's, spread evenly over labels."""
    first: dict[str, float] = {}
    for index, value in zip(labelled, label, strict=True):
        first.setdefault(cohort.participants[index], float(value))
    generator = np.random.default_rng(seed_of(study.seed, "folds", site.name))
    people = list(first)
    tie = generator.permutation(len(people))
    ordered = sorted(range(len(people)), key=lambda i: (first[people[i]], tie[i]))
    fold_of = {people[person]: place % _FOLDS for place, person in enumerate(ordered)}
    return np.array([fold_of[cohort.participants[index]] for index in labelled], dtype=np.int64)


def _fittable(target: Target, label: NDArray[np.float32]) -> bool:
    return len(label) >= 4 and (target.kind == "regression" or len(set(label.tolist())) > 1)


def _kept(folder: Path, model: str, name: str) -> NDArray[Any] | None:
    path = folder / "predictions" / f"{model}.safetensors"
    if not path.exists():
        return None
    with open_arrays(path) as file:
        return file[name] if name in file.names() else None
