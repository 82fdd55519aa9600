"""Scan tokens: keyed numbers that show how many scans two sites share, and of how many people.

A token is 56 bits of HMAC-SHA-256(key, salt 0 content), where `content` is the digest of a prepared
scan. The same scan has the same token at two sites, in one chain of studies; in another chain it
has another. Nobody gets from a token to a scan, but whoever has a scan, bit for bit, can make its
token. So what holds few numbers could be guessed: it gets tokens only under a key that sites share
and the coordinator does not know. Under such a key, too, persons get tokens of an identifier that
they keep from hospital to hospital, where sites hold one; other names of people enter nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays
from common.study import Study

SCANS: Final = "scans"  # (N,) int64, ascending: a token for each scan
PEOPLE: Final = "people"  # (N,) int32: whose, by number, in the order of first tokens
PERSONS: Final = "persons"  # (M,) int64, ascending: of people's lasting identifiers, if any
KEY: Final = "key"  # (1,) int64: equal where two sites' tokens can be compared
_TYPES: Final = {SCANS: "int64", PEOPLE: "int32", KEY: "int64"}
_WITH_PERSONS: Final = {**_TYPES, PERSONS: "int64"}
_BYTES: Final = 7  # a million scans beside a million others: one false match in 70,000 studies
BYTES_OF_SCAN: Final = 8 + 4 + 8  # of its token, its owner, and the owner's
# a row of 16 numbers of ten values each can be one of 10**16, of three figures one of 10**48
FEWEST_NUMBERS: Final = 16


def salt_of(study: Study) -> str:
    """What tokens of a study are made with: one salt for all studies that begin from each other."""
    return (study.start.salt if study.start is not None else "") or study.digest


def tokens_of(
    contents: Sequence[str],
    people: Sequence[str],
    salt: str,
    key: str,
    identifiers: Iterable[str] = (),
) -> Arrays:
    """Tokens of the scans with these `contents`, one for each, and which of them are one person's.

    `identifiers` are those that people keep from hospital to hospital.

    >>> tokens_of(["a", "b", "a"], ["sub-1", "sub-2", "sub-1"], "salt", "")["people"].tolist()
    [0, 1]
    """
    owner = dict(zip(contents, people, strict=True))
    made = sorted((_token(content, salt, key), whose) for content, whose in owner.items())
    number = {whose: index for index, whose in enumerate(dict.fromkeys(who for _, who in made))}
    persons = sorted({_token(f"person\0{one}", salt, key) for one in identifiers})
    return {
        **({PERSONS: np.array(persons, dtype=np.int64)} if persons else {}),
        SCANS: np.array([token for token, _ in made], dtype=np.int64),
        PEOPLE: np.array([number[whose] for _, whose in made], dtype=np.int32),
        KEY: np.array([_token("", salt, key)], dtype=np.int64),
    }


def fault_in(arrays: Mapping[str, NDArray[Any]], scans: int, people: int) -> str:
    """Why `arrays` can be no tokens of a site with so many scans and people; or nothing."""
    types = {name: str(array.dtype) for name, array in arrays.items()}
    if types not in (_TYPES, _WITH_PERSONS):
        return "they are not the arrays that were asked for"
    if any(array.ndim != 1 for array in arrays.values()):
        return "they are not lists"
    tokens, owners, persons = arrays[SCANS], arrays[PEOPLE], arrays.get(PERSONS, arrays[KEY])
    if owners.shape != tokens.shape or arrays[KEY].shape != (1,):
        return "their lengths do not go together"
    for number, most in ((len(tokens), scans), (len(persons), max(people, 1))):
        if not 0 < number <= most:
            return f"{number} of them are of no part of {most}"
    return _fault_in_numbers(tokens, owners, persons, people, int(arrays[KEY][0]))


def _fault_in_numbers(
    tokens: NDArray[Any], owners: NDArray[Any], persons: NDArray[Any], people: int, key: int
) -> str:
    if np.any(np.diff(tokens) <= 0) or np.any(np.diff(persons) <= 0):
        return "they are not different, in order"
    every = [int(tokens[0]), int(tokens[-1]), int(persons[0]), int(persons[-1]), key]
    if min(every) < 0 or max(every) >> 8 * _BYTES:
        return "some have more bits than a token"
    numbers = np.unique(owners)
    if len(numbers) != people or not np.array_equal(numbers, np.arange(len(numbers))):
        return f"{len(numbers)} owners are not its {people} people"  # nobody is left out of it
    return ""


def _token(content: str, salt: str, key: str) -> int:
    digest = hmac.digest(key.encode(), f"{salt}\0{content}".encode(), hashlib.sha256)
    return int.from_bytes(digest[:_BYTES], "big")
