"""Pairwise masks: key agreement and the key stream that two clients share.

Two clients agree on a secret (X25519), derive from it a key that belongs to this roster, round and
ordered pair alone (HKDF-SHA256), and expand the key to integers modulo 2^32 (ChaCha20). One adds the
stream, the other subtracts it. Bonawitz et al., "Practical Secure Aggregation" (2017), without its
self masks and shares.

>>> a, b = private_key(bytes(32), info=b"a"), private_key(bytes(32), info=b"b")
>>> left = pair_stream(a, public_bytes(b), info=b"roster", length=4)
>>> right = pair_stream(b, public_bytes(a), info=b"roster", length=4)
>>> bool((left == right).all())
True
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from privacy.errors import MalformedMessage

KEY_BYTES = 32


def encode_fields(*fields: str | int | bytes) -> bytes:
    """Fields as bytes, each with its type and length in front: no two lists of fields look alike."""
    parts = []
    for item in fields:
        kind = {str: b"s", int: b"i", bytes: b"b"}[type(item)]
        data = item if isinstance(item, bytes) else str(item).encode()
        parts.append(kind + len(data).to_bytes(4, "little") + data)
    return b"".join(parts)


def digest(*fields: str | int | bytes) -> bytes:
    """SHA-256 (32 bytes) of the encoded fields."""
    return hashlib.sha256(encode_fields(*fields)).digest()


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def private_key(secret: bytes, *, info: bytes) -> X25519PrivateKey:
    """The key pair that belongs to a 32-byte secret and to ``info`` (client and round)."""
    if len(secret) != KEY_BYTES:
        raise ValueError(f"secret has {len(secret)} bytes; give exactly {KEY_BYTES}")
    return X25519PrivateKey.from_private_bytes(_derive(secret, encode_fields("x25519", info)))


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The public key, 32 bytes."""
    return key.public_key().public_bytes_raw()


def pair_stream(key: X25519PrivateKey, peer: bytes, *, info: bytes, length: int) -> NDArray[np.uint32]:
    """``length`` integers, uniform on [0, 2^32), that only the two owners of the keys can compute.

    *Guarantees.* Another ``info`` gives an independent stream, even from the same keys. Read-only.

    *Edge cases.* A peer key of small order (all zeros, say) raises `MalformedMessage`.
    """
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise MalformedMessage(f"public key {peer.hex()[:16]}... is no valid X25519 key") from error
    cipher = Cipher(algorithms.ChaCha20(_derive(shared, encode_fields("mask", info)), bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(4 * length)), dtype="<u4").astype(
        np.uint32, copy=False
    )
