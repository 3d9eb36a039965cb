"""Keyed random streams: the only source of randomness.

A stream is addressed by meaning, not by order: ``stream(seed, "batch", round, client)`` gives the
same numbers whoever else draws, before or after. Removing a client or a record from a scenario
therefore leaves every other draw as it was, which is what makes a life without a client comparable
with the life that had it. Only what must be secret in a real deployment (noise, who is sampled for it) is
drawn there from the operating system instead.

>>> float(stream(1, "demo").random()) == float(stream(1, "demo").random())
True
>>> uniform(1, "join", 3) != uniform(1, "join", 4)
True
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Key = int | str


def _digest(seed: int, keys: Iterable[Key]) -> bytes:
    """16 bytes that depend on the seed and on each key's type, value and position."""
    hasher = hashlib.blake2b(digest_size=16)
    for key in (seed, *keys):
        text = f"{'i' if isinstance(key, int) else 's'}{key}".encode()
        hasher.update(len(text).to_bytes(4, "little") + text)
    return hasher.digest()


def stream(seed: int, *keys: Key) -> np.random.Generator:
    """The NumPy generator addressed by ``keys`` under ``seed`` (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, keys), "little")))


def torch_stream(seed: int, *keys: Key, device: str = "cpu") -> torch.Generator:
    """The torch generator addressed by ``keys`` under ``seed``."""
    import torch

    state = int.from_bytes(_digest(seed, keys)[:8], "little") & (2**63 - 1)
    return torch.Generator(device=device).manual_seed(state)


def secret_stream() -> np.random.Generator:
    """A NumPy generator that nobody can repeat, keyed by the operating system: for a deployed client."""
    return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))


def secret_torch_stream(device: str = "cpu") -> torch.Generator:
    """The same for torch."""
    import torch

    return torch.Generator(device=device).manual_seed(secrets.randbits(63))


def uniform(seed: int, *keys: Key) -> float:
    """One draw from [0, 1), a pure function of its address; 53 bits, no generator is built."""
    return (int.from_bytes(_digest(seed, keys)[:8], "little") >> 11) / 2.0**53


def uniforms(seed: int, *keys: Key, ids: Sequence[Key]) -> NDArray[np.float64]:
    """One draw from [0, 1) for each id, shape (len(ids),); an id's draw does not depend on the others."""
    return np.array([uniform(seed, *keys, key) for key in ids], dtype=np.float64)


def ordering(seed: int, *keys: Key, ids: Sequence[Key]) -> list[int]:
    """A random order of positions 0..len(ids)-1; without an id, the others keep their relative order."""
    priorities = uniforms(seed, *keys, ids=ids)
    return sorted(range(len(ids)), key=lambda position: (priorities[position], str(ids[position])))
