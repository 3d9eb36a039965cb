"""What the two parties of secure aggregation agree on: who holds whose shares, and what messages look like.

Legend of tags: shares of a client's secrets (to the server), their delivery (to a client), the request to
unmask (to a client), its answer (to the server).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from privacy.secagg.layout import Terms
from privacy.secagg.messages import digest
from privacy.secagg.roster import Roster

SHARES, DELIVERY, REQUEST, ANSWER = b"SAS2", b"SAD2", b"SAQ2", b"SAU2"
ALIVE, DROPPED = "alive", "dropped"
SHARE_BYTES = 66
"""Bytes of a share: a number below 2^521."""


def holders_of(roster: Roster, client: str, terms: Terms) -> tuple[str, ...]:
    """Who holds shares of a client's secrets: its neighbours and itself, in order of id."""
    return tuple(sorted((client, *roster.neighbours(client, terms.neighbours))))


def pair_info(roster: Roster, first: str, second: str) -> bytes:
    """What the mask of a pair belongs to."""
    return digest("pair mask", roster.fingerprint, *sorted((first, second)))


def share_info(roster: Roster, sender: str, holder: str) -> bytes:
    """What the sealed shares of ``sender`` for ``holder`` belong to."""
    return digest("sealed shares", roster.fingerprint, sender, holder)


def share_digest(roster: Roster, kind: str, owner: str, holder: str, share: bytes) -> bytes:
    """32 bytes that commit to a share; shares are as good as random numbers of 521 bits."""
    return digest("share", roster.fingerprint, kind, owner, holder, share)


def seed_digest(roster: Roster, client: str, seed: bytes) -> bytes:
    """32 bytes that commit a client to the seed of its own mask."""
    return digest("self seed", roster.fingerprint, client, seed)


def checksum(vector: NDArray[np.generic]) -> str:
    """SHA-256 of a vector's bytes, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(vector).data).hexdigest()
