"""JSON documents for others to hold against what they have, signed where the coordinator has a key.

NAME.json       the document, byte for byte what was signed
NAME.sig        Ed25519 signature and public key, as JSON; none where nobody signed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from common.errors import FolderError
from common.protocol.bounded_json import parsed
from common.protocol.signing import read_private_key, sign_document, signed_document
from common.runtime.durable import write_atomically


def write_document(path: Path, table: Mapping[str, Any], key: Ed25519PrivateKey | None) -> None:
    """Write a document, and its signature beside it; an older signature does not stay."""
    text = (json.dumps(table, indent=1, sort_keys=True) + "\n").encode()
    path.with_suffix(".sig").unlink(missing_ok=True)
    write_atomically(path, text)
    if key is not None:
        signed = {"signature": sign_document(text, key), "key": _pem(key.public_key())}
        write_atomically(path.with_suffix(".sig"), json.dumps(signed, indent=1).encode())


def read_document(path: Path) -> dict[str, Any]:
    """A document's table, whoever wrote it.

    Raises
    ------
    FolderError
        If it is missing, or no JSON table.
    """
    try:
        found = parsed(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise FolderError(f"{path} cannot be read: it holds no table")
    return found


def signer_of(path: Path) -> Ed25519PublicKey | None:
    """Who signed a document, if somebody did.

    Raises
    ------
    FolderError
        If there is a signature that does not fit the document, or cannot be read.
    """
    beside = path.with_suffix(".sig")
    if not beside.exists():
        return None
    table = read_document(beside)
    try:
        key = load_pem_public_key(str(table["key"]).encode())
    except (KeyError, ValueError, UnsupportedAlgorithm) as error:
        raise FolderError(f"{beside} holds no public key: {error}") from None
    signature = str(table.get("signature", ""))
    if not isinstance(key, Ed25519PublicKey) or not signed_document(
        path.read_bytes(), signature, key
    ):
        raise FolderError(f"{path} is not what was signed, or {beside} is of another document")
    return key


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """By which people compare a key, over the telephone: the first 16 hex digits of its SHA-256."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def coordinator_key(run: Path, given: Path | None) -> Ed25519PrivateKey | None:
    """The key to sign with: the one given, else that of the hub whose run this is, else none."""
    beside = run.resolve().parent.parent / "coordinator.key"
    path = given or (beside if beside.exists() else None)
    return read_private_key(path) if path is not None else None


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error}") from None


def _pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
