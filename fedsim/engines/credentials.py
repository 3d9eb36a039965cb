"""Keys and certificates of a federation that lives as long as its run: a CA, a server, one key per node.

Elliptic curve P-384 throughout, which is what Flower's node authentication takes. Private keys are written
readable by their owner alone.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=30)
CLOCK_SKEW = datetime.timedelta(minutes=5)


def write_tls(folder: Path, *, address: str = "127.0.0.1") -> None:
    """Write ``ca.pem``, and ``server.pem`` with ``server.key`` for a server at an IP ``address``.

    The CA's private key is not kept: it signs this one certificate and no other.
    """
    ca_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    signing = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    ca = (
        _certificate("fedsim CA", ca_key.public_key(), ca=True)
        .add_extension(signing, critical=True)
        .sign(ca_key, hashes.SHA384())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    server = (
        _certificate("fedsim SuperLink", server_key.public_key(), ca=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA384())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(Encoding.PEM))
    _write_private(folder / "server.key", server_key, PrivateFormat.PKCS8)


def write_node_key(folder: Path) -> None:
    """Write ``key``, by which a SuperNode proves who it is, and ``key.pub``, which the SuperLink is told."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(folder / "key", key, PrivateFormat.OpenSSH)
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


def write_secret(path: Path) -> None:
    """Write 32 random bytes, by which the SuperLink knows the program that starts its ServerApp."""
    _write_for_owner(path, os.urandom(32))


def write_token(path: Path) -> None:
    """Write 32 random bytes in hexadecimal, by which the SuperLink knows whoever submits."""
    _write_for_owner(path, os.urandom(32).hex().encode("ascii"))


def _certificate(name: str, key: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.CertificateBuilder:
    """A certificate of ``key``, issued by the CA, yet to be signed."""
    now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("fedsim CA"))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    )


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    _write_for_owner(path, key.private_bytes(Encoding.PEM, form, NoEncryption()))


def _write_for_owner(path: Path, data: bytes) -> None:
    """Write a file that nobody else may read, from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
