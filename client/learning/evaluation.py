"""A held-out site judges a model: as it is, and with a head of the site's own, on its own scans.

Beside the model stand those that know nothing: the study's constant and the site's own mean. What
the model predicted is kept at the site, so that the next is compared on the same participants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answer import Answer, Measured
from client.data.cohort import Cohort
from client.learning.calibration import calibrations
from client.learning.linear import Features, LinearModel, choose, fit, regional_features
from client.learning.measurement import at_chosen_threshold, difference, measure
from client.learning.prediction import features_of, predict, reestimate_statistics
from client.learning.training import choose_device, tell
from client.site import Site
from common.arrays import Arrays
from common.errors import Refusal
from common.label_sums import told_by
from common.metrics import threshold
from common.network.building import forget_own_heads
from common.protocol.orders import Order
from common.protocol.wire import open_arrays, write_arrays
from common.sections import Target, calibrated
from common.seeding import seed_of
from common.study import Study

Indices = NDArray[np.int64]

_FOLDS = 5
_WITH_HEAD = ("federated", "pooled")  # a head on every single-site model would tell little


@dataclass(frozen=True, slots=True)
class Judge:
    """One held-out site about to judge one model; `folder` keeps what models predicted here."""

    study: Study
    site: Site
    cohort: Cohort
    order: Order
    folder: Path

    def network(self, network: Any) -> Answer:
        """Judge a network that holds the order's arrays."""
        study, cohort = self.study, self.cohort
        of = study.pretraining.rounds * study.pretraining.local_epochs
        tell(network, of, of)
        device = choose_device(self.site.device.kind)
        everyone = np.arange(len(cohort.participants))
        reestimated = study.evaluation.statistics == "reestimated"
        if reestimated or study.aggregation.normalisation == "silobn":
            reestimate_statistics(network, cohort, everyone, device)
        forget_own_heads(network)
        learnt = study.learnt_by(self.order.model)  # other heads of it are as they were drawn
        predicted = predict(network, cohort, everyone, device)
        told = {name: values for name, values in predicted.items() if name in learnt}
        answer = self._predictions(
            {name: values for name, values in told.items() if np.isfinite(values).all()}
        )
        rows = [*answer.measured, *self._calibrated(network, told)]
        if study.evaluation.baselines and self.order.model == "federated":
            rows += _baselines(study, self.site, cohort, self.order)
        if study.evaluation.head and self.order.model in _WITH_HEAD:
            features = features_of(network, cohort, device)
            name = f"{self.order.model}+head"
            rows += _own_head(study, self.site, cohort, self.order, features, name)
        return replace(answer, measured=tuple(rows))

    def _calibrated(self, network: Any, before: Mapping[str, NDArray[Any]]) -> Iterator[Measured]:
        """The model after calibration on some people without a label, judged on all others.

        `before` is what it said of everyone without; the two are compared on the same people.
        """
        study, cohort, site = self.study, self.cohort, self.site
        if self.order.model != "federated":
            return
        for one in calibrations(study, site, cohort, network, before):
            model = calibrated(self.order.model, one.people)
            order = self.order.model_copy(update={"model": model})
            for name, values in one.said.items():
                known = ~np.isnan(cohort.labels[name][one.others])
                if known.sum() < 2 or not np.isfinite(values).all():
                    continue
                judged = one.others[known]
                found = (study, site, cohort, order, name, judged)
                yield from _measured(*found, values[known])
                without = before[name][judged]
                yield from difference(*found, [values[known]], [without], self.order.model)

    def linear(self, arrays: Arrays) -> Answer:
        """Judge linear models on this site's regional measures."""
        features = regional_features(self.cohort)
        everyone = np.arange(len(self.cohort.participants))
        predicted = {}
        for name, target in self.study.pretraining_targets.items():
            if f"linear/{name}/centre" not in arrays:
                continue
            model = LinearModel.from_arrays(name, target, arrays)
            if not model.takes(features.shape[1]):
                raise Refusal("NO_DATA", "this site's regional measures are not the model's")
            predicted[name] = model.predict(features, everyone)
        return self._predictions(predicted)

    def constants(self, arrays: Arrays) -> Answer:
        """Judge what says the same of everyone: the mean or the median of all training labels."""
        everyone = len(self.cohort.participants)
        told = told_by(arrays, self.study)
        return self._predictions({name: np.full(everyone, value) for name, value in told.items()})

    def ensemble(self) -> Answer:
        """Judge the mean of what the members of the ensemble said here, which was kept.

        Raises
        ------
        Refusal
            NO_DATA if one of them has not judged here, or others are here to be judged since.
        """
        members, means = self.study.comparisons.members, dict[str, NDArray[Any]]()
        for name in self.study.targets:
            found = [_kept(self.folder, model, name) for model in members]
            told = [one for one in found if one is not None and len(one) == len(self.cohort)]
            if len(told) == len(members):
                means[name] = np.stack(told).mean(0, dtype=np.float64)
        if not means:
            raise Refusal("NO_DATA", f"not all of {', '.join(members)} have judged here")
        return self._predictions(means)

    def _predictions(self, predicted: Mapping[str, NDArray[Any]]) -> Answer:
        """Measure predictions of all samples, alone and against rivals; keep them for the next."""
        path = self.folder / "predictions" / f"{self.order.model}.safetensors"
        write_arrays(path, dict(predicted), {})
        rows: list[Measured] = []
        for name, values in predicted.items():
            labelled = np.flatnonzero(~np.isnan(self.cohort.labels[name]))
            if len(labelled) < 2:
                continue
            found = (self.study, self.site, self.cohort, self.order, name, labelled)
            rows += _measured(*found, values[labelled])
            for rival in self.order.against:
                theirs = _kept(self.folder, rival, name)
                if theirs is not None and theirs.shape == values.shape:
                    rows += difference(*found, [values[labelled]], [theirs[labelled]], rival)
        return Answer(measured=tuple(rows))


def _baselines(study: Study, site: Site, cohort: Cohort, order: Order) -> list[Measured]:
    """The study's constant, this site's own mean, and a linear model of this site's own.

    The constant is the study's and never the order's: a mean absolute error has a kink at each
    label, and whoever may choose the constant anew each time finds them all.
    """
    rows: list[Measured] = []
    for name, target in study.pretraining_targets.items():
        labelled = np.flatnonzero(~np.isnan(cohort.labels[name]))
        if target.kind != "regression" or len(labelled) < 2:
            continue
        label = cohort.labels[name][labelled].astype(np.float64)
        constant = np.full(len(labelled), target.centre)
        rows += measure(study, site, cohort, order, name, labelled, constant, model="constant")
        others = _mean_of_others(label, [cohort.participants[i] for i in labelled])
        if others is not None:
            rows += measure(study, site, cohort, order, name, labelled, others, model="site-mean")
    try:
        regions = regional_features(cohort)
    except Refusal:
        return rows
    return rows + _own_head(study, site, cohort, order, regions, "site-linear")


def _mean_of_others(
    label: NDArray[np.float64], participants: Sequence[str]
) -> NDArray[np.float64] | None:
    """For each sample the mean label of all other participants; None if there are none."""
    _, person = np.unique(np.asarray(participants), return_inverse=True)
    others = len(label) - np.bincount(person)
    if not others.all():
        return None
    sums: NDArray[np.float64] = label.sum() - np.bincount(person, weights=label)
    return (sums / others)[person]


def _own_head(
    study: Study, site: Site, cohort: Cohort, order: Order, features: Features, model: str
) -> list[Measured]:
    """Cross-fitted linear heads: every participant is predicted by a head that never saw her.

    Also for targets that pretraining knew nothing of: what a fine-tuning task is about, or
    everything where learning went without labels.
    """
    rows: list[Measured] = []
    for name, target in study.targets.items():
        labelled = np.flatnonzero(~np.isnan(cohort.labels[name]))
        predicted = _cross_fitted(study, site, cohort, name, target, features, labelled)
        if predicted is not None:
            as_model = order.model_copy(update={"model": model})
            rows += _measured(study, site, cohort, as_model, name, labelled, predicted)
    return rows


def _measured(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    labelled: Indices,
    predicted: NDArray[Any],
) -> list[Measured]:
    """Every metric; of two classes also where a threshold that others of the site chose cuts."""
    found = (study, site, cohort, order, name, labelled)
    said = _by_chosen_thresholds(study, site, cohort, name, labelled, predicted)
    chosen = at_chosen_threshold(*found, said, "") if said is not None else []
    return [*measure(*found, predicted), *chosen]


def _by_chosen_thresholds(
    study: Study,
    site: Site,
    cohort: Cohort,
    name: str,
    labelled: Indices,
    predicted: NDArray[Any],
) -> NDArray[np.float64] | None:
    """0 or 1 of each sample, by the threshold that suits the people of the other folds.

    What a site would do before it uses a model: what is likely elsewhere need not be so here.
    """
    label = cohort.labels[name][labelled]
    several = len({cohort.participants[index] for index in labelled})
    if study.targets[name].kind != "binary" or several < 2 * _FOLDS:
        return None
    fold, said = _folds(study, site, cohort, labelled, label), np.zeros(len(labelled))
    for number in range(_FOLDS):
        held, others = fold == number, fold != number
        chosen = threshold(label[others], predicted[others])
        if chosen is None:
            return None
        said[held] = predicted[held] >= chosen
    return said


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
    if len({cohort.participants[index] for index in labelled}) < 2 * _FOLDS:
        return None  # too few for a head of their own, or a target that the site does not have
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
