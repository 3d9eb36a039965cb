"""The vocabulary of the privacy layer: wires, and stages with their hooks.

A client's update is a fp32 vector of shape (d,), its parameters in an order fixed by the caller. It
passes stages on its way out; a channel adds the clients' vectors up; the server passes the sum through
the stages again. A stage has four hooks, each of which does nothing unless it is overridden:

=========  ======================================================================================
`local`    owns the local loss reduction and the sampler (example-level DP), or None
`client`   the update on its way out
`sum`      what the server may do with the total of the weighted updates
`server`   after the sum was normalised, in reverse order of stages
=========  ======================================================================================

A stage also declares `facts`, from which the pipeline derives what is legal and who sees what, and
`wire`, the type-check: given what comes in, what goes out. The stage that adds clients up (secure
aggregation) provides a `channel`; without one, vectors are added in the clear.

>>> Wire(kind="float", l2_bound=1.0).dimension is None
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from privacy.accounting import Accountant
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.local import LocalRule, LocalTask, Metrics
from privacy.transport import Channel, Codec, Vector
from privacy.units import Unit

if TYPE_CHECKING:
    from privacy.ledger import Ledger, Release

WireKind = Literal["float", "grid", "modular"]


Reveals = Literal["individual", "sum"]


Place = Literal["local", "update", "channel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """What travels between two stages of one client.

    ``l2_bound`` is the sensitivity: the largest L2 norm of one client's unweighted update; None if nothing
    bounds it. ``grid`` means whole multiples of ``step``, weighted already, each at most ``largest`` in size
    but for a chance that can be neglected; ``modular`` integers modulo 2^32. ``dimension`` is the length,
    None if it is not known beforehand; ``longest`` a norm that an honest client's vector hardly ever
    exceeds, where noise leaves it without a bound; ``min_cohort`` the fewest contributors that a stage was
    sized for. ``codec`` packs the vector where it travels in the clear; a stage behind it that changes
    updates at the client must set it to None or refuse. The last ``extra`` coordinates are no part of the
    update.
    """

    kind: WireKind
    l2_bound: float | None
    step: float | None = None
    largest: float | None = None
    dimension: int | None = None
    longest: float | None = None
    min_cohort: int = 1
    codec: Codec | None = None
    extra: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a stage declares about itself, apart from its `wire`.

    ``reveals`` is what the server sees after it; ``charges`` the unit that its releases are charged
    to (None: no release), whose epsilon is quoted at ``delta`` by ``accountant``. ``noised_by`` says who adds
    noise, hence against whom it protects. ``central`` stages need one weight for all, divide by a public
    constant, and release noise even if nobody contributes. ``on_sum`` says what the server does to the sum;
    it is quoted when a strategy asks for individual updates.
    """

    name: str
    place: Place
    takes: tuple[WireKind, ...] = ("float",)
    reveals: Reveals = "individual"
    charges: Unit | None = None
    delta: float | None = None
    accountant: Accountant = "pld"
    noised_by: Literal["client", "clients together", "server"] | None = None
    central: bool = False
    on_sum: str = "works on their sum"


class Stage(Protocol):
    """A privacy stage. Subclass it to inherit hooks that do nothing."""

    @property
    def facts(self) -> Facts:
        """What this stage declares."""
        ...

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        """Type-check: what goes out when ``incoming`` comes in; `PipelineError` if it cannot."""
        return incoming

    def local(self) -> LocalRule | None:
        """The rule that local training must follow, or None."""
        return None

    def client(self, update: Vector, context: ClientContext) -> tuple[Vector, Metrics]:
        """The update on its way out. Metrics stay at the client."""
        return update, {}

    def read(self, context: RoundContext) -> None:
        """Charge what the clients' sum gives away as they sent it, be it used or not.

        ``context.contributors`` are in it.
        """
        return

    def sum(self, total: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        """What the server does with the total, before it divides by the weight."""
        return total, {}

    def server(self, update: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        """What the server does after that."""
        return update, {}

    def channel(self, incoming: Wire, nominal: Nominal) -> Channel | None:
        """The channel this stage provides, or None."""
        return None

    def charged(self, context: ClientContext, task: LocalTask | None) -> Sequence[Release]:
        """What this stage charges at the client, in one attempt in which it trains and sends."""
        return ()

    def affordable(self, client: str, context: RoundContext, ledger: Ledger) -> bool:
        """Whether a client's budget allows it to be drawn in this round. Changes nothing."""
        return True

    def promise(self, nominal: Nominal, tasks: Sequence[LocalTask], *, colluders: int = 0) -> float | None:
        """The most epsilon that a whole life may cost one unit.

        Infinite if nothing bounds it; None: no release.

        ``tasks`` are the local trainings, one a client; ``colluders`` clients tell the server all they know.
        """
        return None

    def divisor(self, context: RoundContext) -> float | None:
        """A public number by which the total is divided in place of its weight, or None."""
        return None

    def next_state(self, update: Vector, context: RoundContext) -> Mapping[str, float]:
        """What this stage keeps for the next round, from the mean as its `server` hook gets it."""
        return {}


def acts_on_sum(stage: Stage) -> bool:
    """Whether the server does something to the cohort's sum or mean for ``stage``.

    It adds noise, divides by a public number or decodes: updates as they were sent are not yet what the stage
    makes of them.
    """
    return any(
        getattr(type(stage), hook) is not getattr(Stage, hook) for hook in ("sum", "server", "divisor")
    )
