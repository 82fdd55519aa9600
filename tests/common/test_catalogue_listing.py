"""What `callosum catalogue` says is asked of the code, and complete."""

from __future__ import annotations

import functools

import pytest

from common import catalogue
from common.catalogue_listing import Entry, entries

PUBLISHED = {
    "sfcn": 2_950_336, "densenet": 11_242_624, "resnet": 33_160_896, "vit": 88_368_384,
    "nit": 1_798_312, "minit": 3_632_704, "deeplight": 592_824, "lcm": 147_174_400,
}  # fmt: skip


@functools.cache
def found() -> dict[tuple[str, str], Entry]:
    return {(entry.sort, entry.name): entry for entry in entries()}


@pytest.mark.parametrize(
    ("sort", "shelf"),
    [
        ("backbone", "backbones"), ("objective", "objectives"), ("data kind", "kinds"),
        ("augmentation", "augmentations"),
    ],
)  # fmt: skip
def test_every_name_of_the_catalogue_is_listed_with_what_it_is(sort: str, shelf: str) -> None:
    """Whoever writes a study looks here first."""
    names = {name for kind, name in found() if kind == sort}
    assert names == set(catalogue.names(shelf))
    assert all(entry.what.endswith(".") for entry in found().values() if entry.sort == sort)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_backbone_is_listed_at_its_published_size_and_a_small_one(name: str) -> None:
    """The count is the published network's, before any method has added to it."""
    entry = found()["backbone", name]
    assert entry.parameters == PUBLISHED[name]
    assert entry.small is not None
    assert entry.small < 1_000_000


def test_who_cannot_learn_by_what_is_listed_with_the_reason() -> None:
    """A study that makes no sense is found here, not at the first round."""
    refused = found()["objective", "mae"].refuses
    assert set(refused) == set(catalogue.names("backbones")) - {"vit", "nit"}
    assert "simmim hides voxels from any" in refused["swin"]
    maps = {"sfcn", "densenet", "resnet", "swin"}
    assert set(found()["objective", "simmim"].refuses) == set(catalogue.names("backbones")) - maps
    assert not found()["objective", "joint"].refuses  # by one of its parts or another
    assert not found()["objective", "multitask"].refuses


def test_what_cannot_be_private_is_told_before_anyone_plans_a_budget() -> None:
    """A coupled loss gives no participant a gradient of her own; batch statistics neither."""
    assert found()["objective", "simclr"].private.startswith("no: ")
    assert found()["objective", "mae"].private == "yes"
    assert found()["backbone", "sfcn"].private == "with groupnorm"
    assert found()["backbone", "vit"].private == "yes"


def test_transformers_offer_prompts_and_convolutions_do_not() -> None:
    """A method that a network lacks must not be promised."""
    own = {name: entry.methods for (sort, name), entry in found().items() if sort == "backbone"}
    transformers = {"vit", "nit", "minit", "swin"}
    assert {name for name, methods in own.items() if methods == ("prompts",)} == transformers


def test_rules_of_aggregation_and_methods_name_their_source() -> None:
    """Every choice of a study file, none forgotten."""
    sorts = {sort for sort, _ in found()}
    assert {"server optimiser", "normalisation", "fine-tuning method"} < sorts
    assert found()["server optimiser", "fedyogi"].what == "Reddi et al. 2021"
    assert ("normalisation", "groupnorm") in found()
