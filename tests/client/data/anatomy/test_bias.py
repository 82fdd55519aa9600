"""N4 takes out what a coil puts in, and nothing else."""

from __future__ import annotations

import numpy as np

from client.data.anatomy.bias import evened
from client.data.anatomy.template import template


def test_a_known_field_is_taken_out_whatever_a_scan_calls_zero() -> None:
    """Oracle: the template, shaded by a smooth field; what was divided by is that field.

    Scans that were scaled around 0 have their darkest where there is no signal.
    """
    mni = template(8.0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in mni.shape), indexing="ij")
    field = 0.8 * x + 0.6 * y**2 - 0.5 * z
    shaded = (mni.voxels * np.exp(field)).astype(np.float32)
    even = evened(shaded - 50, mni.affine, mni.brain)
    assert even.min() == -50
    taken = np.log(shaded[mni.brain] / (even[mni.brain] + 50))
    wanted = field[mni.brain]
    assert wanted.std() > 0.3
    assert (taken - wanted).std() < 0.2 * wanted.std()
