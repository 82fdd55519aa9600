"""Sound inputs made unsound: bytes that rot, and values that nobody would write."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import Any

import tomli_w

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 255, 2**31, 2**53, 2**53 + 1, 2**63, -(2**63), 10**40,
    0.0, -0.0, 0.5, 1e308, 1.7e308, -1e308, 5e-324, 3.3e38, float("nan"), float("inf"),
    "", " ", "a", "a" * 300, "../../etc/passwd", "/", "\x00", "\x1b[8m", "\ud800", "é",
    "=HYPERLINK(1)", "[/]", "[red]", '"', "\\", "\n", "0" * 64, "nan", "1e999", "9" * 5000,
    "train", "alpha", "age", "features", "-9999", "1.0",
)  # fmt: skip
_MOST_PLACES = 20_000  # a tree that has grown large is changed near its beginning
_WORDS = (b"\x00", b"\xff", b"\n", b"{", b"}", b"[", b"]", b'"', b",", b"=", b"\x93NUMPY", b"\\u",
          b"1e999", b"nan", b"-", b"\x1f\x8b", b"'", b"\t", b";", b"\x1b[", b"\r")  # fmt: skip


def mutated(random: Random, data: bytes) -> bytes:
    """A few bits, bytes, numbers or pieces of `data` are changed, lost, doubled or moved."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(changed) + 1)
        length = min(random.choice((1, 2, 4, 8, 50, 1000)), len(changed) - place)
        match random.randrange(8):
            case 0 if length:
                changed[place] ^= 1 << random.randrange(8)
            case 1 if length:
                changed[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20))
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place:place] = random.choice(_WORDS) * random.choice((1, 1, 2, 40, 3000))
            case 5:
                number = random.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, 1 << 40))
                size, order = random.choice((2, 4, 8)), random.choice(("little", "big"))
                wrapped = number % (1 << 8 * size)
                changed[place : place + size] = wrapped.to_bytes(size, order)
            case 6:
                del changed[place:]
            case _:
                changed[place:place] = random.randbytes(length)
    return bytes(changed)


def grown(random: Random, value: Any) -> Any:
    """A copy of a tree of tables, lists and scalars with a few entries that make no sense."""
    tree = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        tree = _changed(random, tree)
    return tree


def as_json(random: Random, value: Any) -> bytes:
    """`value` changed and written as JSON, now and then with lost or doubled bytes."""
    data = json.dumps(grown(random, value)).encode()
    return mutated(random, data) if random.random() < 0.2 else data


def as_toml(random: Random, value: Any) -> bytes:
    """`value` changed and written as TOML, now and then with lost or doubled bytes."""
    try:
        data = tomli_w.dumps(grown(random, value)).encode()
    except (TypeError, ValueError, AttributeError, RecursionError):  # TOML has no word for it
        data = tomli_w.dumps(value).encode()
        return mutated(random, data)
    return mutated(random, data) if random.random() < 0.3 else data


def _changed(random: Random, tree: Any) -> Any:
    here = list(islice(_places(tree), _MOST_PLACES))
    if not here:
        return _strange(random, [tree])
    parent, key = random.choice(here)
    old = parent[key]
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[_name(random)] = old
        case 2 if isinstance(parent, dict):
            del parent[key]
            parent[_name(random)] = old
        case 3 if isinstance(parent, list):
            parent[key:key] = [copy.deepcopy(old)] * random.choice((1, 2, 50))
        case 4:
            parent[key] = copy.deepcopy(random.choice(here)[0]) if len(here) < 500 else old
        case _:
            parent[key] = _strange(random, [old])
    return tree


def _strange(random: Random, like: Sequence[Any]) -> Any:
    match random.randrange(10):
        case 0:
            return random.choice(({}, [], [[]], {"": {}}, [None], {"a": 1}))
        case 1:
            return [like[0]] * random.choice((1, 2, 300))
        case 2:
            return {_name(random): like[0]}
        case 3:
            nested: Any = 1
            for _ in range(random.choice((3, 40, 120))):
                nested = [nested] if random.random() < 0.5 else {"a": nested}
            return nested
        case _:
            return random.choice(SCALARS)


def _name(random: Random) -> str:
    found = random.choice(SCALARS)
    return found if isinstance(found, str) else random.choice(("x", "kind", "name", "7"))


def _places(tree: Any) -> Any:
    """Every (table or list, key) of a tree."""
    waiting = [tree]
    while waiting:
        here = waiting.pop()
        keys = (
            here if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        )
        for key in list(keys):
            yield here, key
            if isinstance(here[key], dict | list):
                waiting.append(here[key])
