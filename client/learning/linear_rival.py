"""The linear models of pooled data, beside which a network must hold its own."""

from __future__ import annotations

import numpy as np

from client.answer import Answer
from client.data.cohort import Cohort
from client.learning.linear import choose, fit, regional_features
from client.learning.support import people_among
from common.arrays import Arrays
from common.network.plan import rules_of
from common.study import Study


def linear_models(study: Study, cohort: Cohort) -> Answer:
    """Penalised linear models of all pretraining targets; validation participants choose."""
    features = regional_features(cohort)
    sent: Arrays = {}
    behind: dict[str, int] = {}
    outputs = 1
    for name, target in study.pretraining_targets.items():
        label = cohort.labels[name]
        parts = [cohort.indices(split, study.splits) for split in ("train", "validation")]
        fitted, held = (part[~np.isnan(label[part])] for part in parts)
        if len(fitted) < 2 or (target.kind != "regression" and len(set(label[fitted])) < 2):
            continue
        strength = choose(target, features, label, [(fitted, held)]) if len(held) else 1.0
        arrays = fit(target, features, label, fitted, strength).arrays(name)
        sent |= arrays
        behind |= dict.fromkeys(arrays, people_among(cohort, fitted))
        outputs = max(outputs, target.outputs)
    # of each feature its mean, its spread and the weights
    return Answer(arrays=sent, expected=rules_of(sent), behind=behind, reveals=2 + outputs)
