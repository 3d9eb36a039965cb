"""Whose update decided a round: said when one client's outweighs all the others together.

The mean then points within 90 degrees of that client's update, whatever the others sent.

>>> heaviest({3: 9.0, 5: 1.0, 7: 2.0})
Heaviest(client=3, times=3.0)
>>> heaviest({3: 9.0, 5: 1.0}) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FEWEST = 3
"""Contributors below which one of them is the longer one anyway."""


@dataclass(frozen=True)
class Heaviest:
    """A client whose update is ``times`` as long as those of all others together, by L2 norm and weight."""

    client: int
    times: float


def heaviest(lengths: Mapping[int, float]) -> Heaviest | None:
    """The client whose update outweighs the others, given each one's L2 norm times weight.

    None if nobody's does, or if there are fewer than three.
    """
    if len(lengths) < FEWEST:
        return None
    client = max(lengths, key=lambda name: (lengths[name], name))
    others = math.fsum(length for name, length in lengths.items() if name != client)
    if lengths[client] <= others:
        return None
    return Heaviest(client=client, times=lengths[client] / others if others else math.inf)
