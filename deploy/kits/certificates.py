"""The certificates of a consortium: its authority's, the hub's, and the pinned pair of a site."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK: Final = ("localhost", "127.0.0.1")
_PAIR_NAMES: Final = (*LOOPBACK, "agent")  # what a courier in a container calls the agent
_BACKDATED: Final = timedelta(days=1)  # for hospital clocks that are behind
_PURPOSES: Final = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "agent": ExtendedKeyUsageOID.SERVER_AUTH,
    "courier": ExtendedKeyUsageOID.CLIENT_AUTH,
}


def authority(key: EllipticCurvePrivateKey, consortium: str, *, now: datetime, days: int) -> bytes:
    """The authority's own certificate, PEM; it may sign others' and nothing else."""
    subject = _subject(consortium, "Callosum consortium authority")
    draft = _draft(key, subject, subject, now, now + timedelta(days=days))
    draft = (
        draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_issued_by(key), critical=False)
    )
    return draft.sign(key, SHA384()).public_bytes(Encoding.PEM)


def server(
    key: EllipticCurvePrivateKey,
    names: Iterable[str],
    *,
    ca: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> bytes:
    """The hub's certificate for `names` in PEM; it ends no later than `ca` does."""
    consortium = ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
    subject = _subject(str(consortium), "Callosum hub")
    end = min(now + timedelta(days=days), ca.not_valid_after_utc)
    draft = _leaf(_draft(key, subject, ca.subject, now, end), "server", names)
    draft = draft.add_extension(_issued_by(ca_key), critical=False)
    return draft.sign(ca_key, SHA384()).public_bytes(Encoding.PEM)


def pinned(
    key: EllipticCurvePrivateKey, site: str, process: str, *, now: datetime, days: int
) -> bytes:
    """The certificate of a site's `agent` or `courier`, signed by itself, PEM."""
    subject = _subject(site, f"Callosum {process}")
    draft = _draft(key, subject, subject, now, now + timedelta(days=days))
    draft = _leaf(draft, process, _PAIR_NAMES)
    return draft.sign(key, SHA384()).public_bytes(Encoding.PEM)


def belongs(certificate: bytes, key: EllipticCurvePrivateKey) -> bool:
    """Whether a PEM certificate is of this key."""
    try:
        return x509.load_pem_x509_certificate(certificate).public_key() == key.public_key()
    except ValueError:
        return False


def covers(certificate: bytes, host: str) -> bool:
    """Whether a PEM certificate is good for `host`, a DNS name or IP address."""
    found = x509.load_pem_x509_certificate(certificate).extensions
    held = found.get_extension_for_class(x509.SubjectAlternativeName).value
    return _general_name(host) in held


def _draft(
    key: EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _leaf(
    draft: x509.CertificateBuilder, process: str, names: Iterable[str]
) -> x509.CertificateBuilder:
    held = [_general_name(name) for name in dict.fromkeys(name.lower() for name in names)]
    return (
        draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_PURPOSES[process]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(held), critical=False)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host.lower())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(key: EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _subject(organisation: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
