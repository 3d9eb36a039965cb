"""What clients and server exchange in a round, and the protocol of a channel that adds vectors up.

>>> Contribution(update=np.zeros(2), weight=3.0).metrics
()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.contexts import ClientContext, RoundContext

Vector = NDArray[np.float64]


Update = NDArray[np.float32]


Packed = NDArray[np.uint8]


class Codec(Protocol):
    """Packs vectors that a compressing stage made into bytes, and back; see `privacy.codecs`."""

    @property
    def data_dependent(self) -> bool:
        """Whether the client's data decide what is sent: which coordinates, or on which grid."""

    def encode(self, vector_D: Update) -> Packed:
        """The vector (d,) as bytes, its length among them; `ClientUpdateError` if it is not of its kind."""

    def decode(self, packed: NDArray[Any]) -> Update:
        """The vector, finite, bit by bit; `ClientUpdateError` for bytes that are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """What a client sends: float32, uint32 or packed bytes, of one dimension, and small public fields."""

    array: NDArray[np.float32] | NDArray[np.uint32] | Packed
    fields: Mapping[str, int | float | str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """What a client adds to the sum: weight * update (d,), weight, and its declared metrics in order.

    ``update`` is not weighted yet, unless it travels on a grid.
    """

    update: Vector
    weight: float
    metrics: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """What a channel lets the server learn: sums over ``contributors``.

    ``update`` is the sum of weight * update, float64 (d,). ``error`` bounds the absolute error per
    coordinate of that sum that the channel itself made.
    """

    update: Vector
    weight: float
    metrics: tuple[float, ...]
    contributors: tuple[str, ...]
    error: float = 0.0


class ClientChannel(Protocol):
    """One client's end of a channel, for one attempt of one round."""

    @property
    def memory(self) -> bytes:
        """All private state as bytes (kept by the client between messages; empty if there is none)."""

    def advertise(self) -> bytes:
        """The first message; empty unless the channel is interactive."""

    def share(self, broadcast: bytes) -> bytes:
        """The second message, in answer to what the server broadcast; likewise."""

    def seal(self, contribution: Contribution, delivery: bytes) -> Payload:
        """The message that carries the contribution."""

    def unmask(self, request: bytes) -> bytes:
        """The last message, which helps to read the sum; empty unless the channel is interactive."""


class ServerChannel(Protocol):
    """The server's end of a channel, for one attempt of one round: four steps, each once, in this order.

    Any client may fall silent before any of them. ``rejected`` names those of whom a message could not be
    used, with reasons; it grows from step to step. ``lengths`` holds the L2 norm of each update that counts,
    times its weight; empty where only the sum is to be seen.
    """

    rejected: dict[str, str]
    lengths: dict[str, float]

    def collect(self, messages: Mapping[str, bytes]) -> bytes:
        """Advertised messages by client -> what is broadcast to them; empty unless interactive."""

    def deliver(self, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Second messages by client -> what each client that is still in gets."""

    def receive(self, payloads: Mapping[str, Payload]) -> Mapping[str, bytes]:
        """Payloads by client -> what those that sent one are asked; `RoundAborted` if there are too few."""

    def total(self, answers: Mapping[str, bytes]) -> Total:
        """Answers by client -> the sum, or `RoundAborted`."""

    def individuals(self) -> Mapping[str, Contribution]:
        """What each contributor sent, by client in the order of ids, once `receive` was called.

        `ViewError` where there is only a sum.
        """


class Channel(Protocol):
    """How vectors are added up."""

    @property
    def interactive(self) -> bool:
        """Whether clients advertise before they send."""

    @property
    def min_cohort(self) -> int:
        """Fewest contributors of which a sum may be formed."""

    @property
    def bearable_colluders(self) -> int:
        """Clients that may tell the server all they know without giving away another's update."""

    def client(self, context: ClientContext) -> ClientChannel:
        """A client's end."""

    def server(self, context: RoundContext) -> ServerChannel:
        """The server's end."""
