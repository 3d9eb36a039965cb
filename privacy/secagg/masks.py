"""Keys and masks: key agreement, key streams, and how shares travel.

Two clients agree on a secret (X25519), from which keys are derived that belong to one purpose, roster and
ordered pair alone (HKDF-SHA256). A key is expanded to integers modulo 2^32 (ChaCha20), or seals a share
(AES-256-GCM).

>>> a, b = private_key(bytes(32), "a"), private_key(bytes(32), "b")
>>> left, right = agree(a, public_bytes(b), info=b"pair"), agree(b, public_bytes(a), info=b"pair")
>>> bool((stream(left, length=4) == stream(right, length=4)).all())
True
>>> unseal(right, seal(left, b"share"))
b'share'
"""

from __future__ import annotations

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from privacy.errors import MalformedMessage
from privacy.secagg.messages import pack

KEY_BYTES = 32


def derive(secret: bytes, *info: str | int | bytes) -> bytes:
    """32 bytes that belong to a secret and to a purpose."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=pack(info)).derive(secret)


def private_key(secret: bytes, *info: str | int | bytes) -> X25519PrivateKey:
    """The key pair that belongs to a 32-byte secret and to ``info`` (purpose, round and client)."""
    if len(secret) != KEY_BYTES:
        raise ValueError(f"secret has {len(secret)} bytes; give exactly {KEY_BYTES}")
    return X25519PrivateKey.from_private_bytes(derive(secret, "x25519", *info))


def load_private(data: bytes) -> X25519PrivateKey:
    """The key pair whose private half these 32 bytes are."""
    return X25519PrivateKey.from_private_bytes(data)


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The public key, 32 bytes."""
    return key.public_key().public_bytes_raw()


def agree(key: X25519PrivateKey, peer: bytes, *, info: bytes) -> bytes:
    """32 bytes that only the two owners of the keys can compute, for one purpose.

    A peer key of small order (all zeros, say) raises `MalformedMessage`.
    """
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise MalformedMessage(f"public key {peer.hex()[:16]}... is no valid X25519 key") from error
    return derive(shared, "agreed", info)


def stream(key: bytes, *, length: int) -> NDArray[np.uint32]:
    """``length`` integers, uniform on [0, 2^32) to whoever lacks the key. Read-only.

    A key is expanded once and to one length: another mask needs another key.
    """
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
    words = np.frombuffer(cipher.encryptor().update(bytes(4 * length)), dtype="<u4")
    return words.astype(np.uint32, copy=False)


def seal(key: bytes, content: bytes) -> bytes:
    """Content that only an owner of the key can read or change; a key seals one content only."""
    return AESGCM(key).encrypt(bytes(12), content, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The content, or `MalformedMessage` if it was sealed under another key or damaged."""
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, None)
    except (InvalidTag, ValueError) as error:
        raise MalformedMessage("a sealed share was damaged or is another's") from error
