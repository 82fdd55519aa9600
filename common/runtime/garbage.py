"""Keeps a library that collects garbage again and again from looking through all that is loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def old_objects_kept() -> Iterator[None]:
    """What is there already is no garbage while it lasts.

    nilearn collects ten times for each image that it touches: half a second each beside torch.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
