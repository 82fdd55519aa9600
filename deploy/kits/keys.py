"""Private keys that nobody else can read, not even while they are being written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from common.errors import SettingError
from common.protocol.signing import read_private_key
from common.runtime.durable import storage_checked, write_atomically, write_secret

_PUBLIC: Final = 0o644
_READABLE: Final = 0o444


def make_folder(path: Path, mode: int) -> None:
    """Make a folder with that mode, whatever the umask."""
    with storage_checked(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(mode)


def write_private(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically; only its owner can ever read it."""
    _clear(path)
    write_secret(path, data)


def write_public(path: Path, data: bytes) -> None:
    """Make `data` the content of `path` atomically; whoever reaches the folder may read it."""
    if not path.is_file() or path.read_bytes() != data:
        _clear(path)
        write_atomically(path, data, mode=_PUBLIC)
    if path.stat().st_mode & _READABLE != _READABLE:  # a narrow umask would keep the courier out
        with storage_checked(path):
            path.chmod(_PUBLIC)


def tls_key(path: Path) -> EllipticCurvePrivateKey:
    """The P-384 key of a certificate, in PEM; made if there is none."""
    return _key(path, PrivateFormat.PKCS8, load_pem_private_key)


def node_key(path: Path) -> EllipticCurvePrivateKey:
    """The P-384 key that Flower knows a site by, as ssh-keygen writes it; made if there is none."""
    return _key(path, PrivateFormat.OpenSSH, load_ssh_private_key)


def node_public_line(key: EllipticCurvePrivateKey, site: str) -> bytes:
    """The line of a .pub file: kind of key, key, whose it is."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line + f" {site}\n".encode()


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key that orders are signed with, in PEM; made if there is none."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return read_private_key(path)


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half as a PEM block."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _key(path: Path, form: PrivateFormat, load: Callable[..., Any]) -> EllipticCurvePrivateKey:
    if not path.exists():
        key = generate_private_key(SECP384R1())
        write_private(path, key.private_bytes(Encoding.PEM, form, NoEncryption()))
    try:
        found = load(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{path} cannot be read as a private key: {error}") from None
    if not isinstance(found, EllipticCurvePrivateKey):
        raise SettingError(f"{path} holds another kind of key; an elliptic-curve key is needed")
    return found


def _clear(path: Path) -> None:
    """Delete what a run that was killed left of a new `path`: it may be half of a secret."""
    with storage_checked(path):
        for rubbish in path.parent.glob(f".{path.name}.*.tmp"):
            rubbish.unlink()
