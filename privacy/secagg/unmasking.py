"""Taking masks off a sum, from the shares of those who reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.errors import RoundAborted
from privacy.secagg.layout import Terms
from privacy.secagg.masks import KEY_BYTES, agree, load_private, public_bytes, stream
from privacy.secagg.protocol import holders_of, pair_info, seed_digest
from privacy.secagg.roster import Roster
from privacy.secagg.shamir import Shamir


class WrongSecret(RoundAborted):
    """Shares that agree with what ``owner`` committed to give another secret than it committed to."""

    def __init__(self, owner: str, message: str) -> None:
        super().__init__(message)
        self.owner = owner


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmasking:
    """Takes masks off a sum.

    It holds who ``reported`` of those whose vectors were masked, and the digest of the seed that each
    ``committed`` to.

    *Guarantees.* What comes out is the sum without masks, or `RoundAborted` is raised: a secret is used only
    if it is the one committed to.
    """

    terms: Terms
    roster: Roster
    committed: Mapping[str, bytes]
    reported: tuple[str, ...]

    def unmasked(
        self, masked: NDArray[np.uint32], found: Mapping[str, Mapping[str, bytes]]
    ) -> NDArray[np.uint32]:
        """The sum (n,) without masks, from usable shares by holder by owner."""
        total = masked.copy()
        for owner, shares in found.items():
            secret = self._joined(owner, shares)
            for mask, sign in self._masks(owner, secret, total.size):
                (np.subtract if sign > 0 else np.add)(total, mask, out=total)
        return total

    def _joined(self, owner: str, shares: Mapping[str, bytes]) -> bytes:
        """The secret behind a client's shares: its seed if it reported, its mask key if not."""
        needed = self.terms.shares_needed(len(holders_of(self.roster, owner, self.terms)))
        if len(shares) < needed:
            raise RoundAborted(
                f"{len(shares)} usable shares of client {owner!r} came back, fewer than the {needed} that "
                f"threshold={self.terms.threshold} asks for"
            )
        points = self.roster.points()
        chosen = sorted(shares)[:needed]
        number = Shamir().join({points[name]: int.from_bytes(shares[name], "little") for name in chosen})
        if number >= 2 ** (8 * KEY_BYTES):
            raise WrongSecret(owner, f"the shares of client {owner!r} do not fit together")
        return number.to_bytes(KEY_BYTES, "little")

    def _masks(self, owner: str, secret: bytes, size: int) -> Iterator[tuple[NDArray[np.uint32], int]]:
        """What of the masks of a client is in the sum, with its sign."""
        roster = self.roster
        if owner in self.reported:
            if seed_digest(roster, owner, secret) != self.committed[owner]:
                raise WrongSecret(owner, f"client {owner!r} shared another seed than it committed to")
            yield stream(secret, length=size), 1
            return
        key = load_private(secret)
        if public_bytes(key) != roster.keys[owner].masks:
            raise WrongSecret(owner, f"client {owner!r} shared another key than it advertised")
        for peer in holders_of(roster, owner, self.terms):
            if peer in self.reported:
                shared_key = agree(key, roster.keys[peer].masks, info=pair_info(roster, owner, peer))
                yield stream(shared_key, length=size), 1 if peer < owner else -1
