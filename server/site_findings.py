"""What is odd about a site's data, as far as its counts tell: no labels.

Said when it is found and shown on the page. Nobody is left out for it: what is
right at a hospital only that hospital can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.study import Study


def without_labels(study: Study, census: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Training sites that hold no label of what is learnt; `census` is what `census.json` holds."""
    targets = tuple(study.pretraining_targets)
    for site in study.sites.train if study.learns_from_labels else ():
        held = census.get(site, {}).get("held", {})
        if held and not any(held.get(f"labels/{name}") for name in targets):
            yield (
                f"{site} holds {held.get('scans', 0)} scans and no label of "
                f"{' or '.join(targets)}, or of too few people: nothing enters their loss there, "
                "and the site weighs nothing"
            )
