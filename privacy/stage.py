"""The vocabulary of the privacy layer: wires, stages, contexts, channels, local rules.

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import Accountant, Sampling

if TYPE_CHECKING:
    import torch

    from privacy.ledger import Ledger

Vector = NDArray[np.float64]
Update = NDArray[np.float32]
Packed = NDArray[np.uint8]
Metrics = dict[str, float]
WireKind = Literal["float", "grid", "modular"]
Reveals = Literal["individual", "sum"]
Unit = Literal["example", "client"]
Place = Literal["local", "update", "channel"]


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
class Wire:
    """What travels between two stages of one client.

    ``l2_bound`` is the sensitivity: the largest L2 norm of one client's unweighted update; None if nothing
    bounds it. ``grid`` means whole multiples of ``step``, weighted already, each at most ``largest`` in size
    but for a chance that can be neglected; ``modular`` integers modulo 2^32. ``dimension`` is the length,
    None if it is not known beforehand; ``min_cohort`` the fewest contributors that a stage was sized for.
    ``codec`` packs the vector where it travels in the clear; a stage behind it that changes updates at the
    client must set it to None or refuse. The last ``extra`` coordinates are no part of the update."""

    kind: WireKind
    l2_bound: float | None
    step: float | None = None
    largest: float | None = None
    dimension: int | None = None
    min_cohort: int = 1
    codec: Codec | None = None
    extra: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number that each client reports and of which the server learns the cohort's mean.

    Values are clamped to [-bound, bound]. ``public`` promises that the value does not depend on the
    client's records (a step count, say); beside a DP stage only public metrics are allowed.
    """

    name: str
    bound: float
    public: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.bound < float("inf"):
            raise ValueError(f"bound={self.bound} of metric {self.name!r} must be positive and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """How a round's cohort is drawn from those who are there: public, the same whoever is drawn.

    ``kind`` as in `privacy.accounting.Mechanism`; ``rate`` is the chance of each; ``population`` how many are
    there, ``size`` the largest or fixed size of a cohort (both 0 where nothing bounds it). ``nominal`` is how
    many would be there had nobody been forgotten: a public number, by which means are taken."""

    kind: Sampling = "none"
    rate: float = 1.0
    population: int = 0
    size: int = 0
    nominal: int = 0

    def expected(self) -> float:
        """Clients of a cohort on average, as far as is public."""
        most = self.nominal or self.population
        if self.kind == "without_replacement":
            return float(min(self.size, most))
        return min(self.rate * most, float(self.size or most))


@dataclass(frozen=True, kw_only=True, slots=True)
class Nominal:
    """The public numbers that a pipeline is checked against: worst cases, never this round's values.

    ``rounds`` is how many there will be in the whole life, ``draws`` how cohorts are drawn in them;
    ``invitations`` to how many of them one client may be asked whatever the draw. ``cohort_known`` says that
    the adversary knows who takes part."""

    max_cohort: int | None = None
    max_weight: float | None = None
    dimension: int | None = None
    min_cohort: int = 1
    metrics: tuple[Metric, ...] = ()
    session: str = ""
    rounds: int | None = None
    draws: tuple[Draw, ...] = ()
    invitations: int = 0
    cohort_known: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a stage declares about itself, apart from its `wire`.

    ``reveals`` is what the server sees after it; ``charges`` the unit that its releases are charged
    to (None: no release), whose epsilon is quoted at ``delta`` by ``accountant``. ``noised_by`` says who adds
    noise, hence against whom it protects. ``central`` stages need one weight for all, divide by a public
    constant, and release noise even if nobody contributes. ``on_sum`` says, for those who wonder why
    they cannot have updates one by one, what the server does for it to their sum.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundContext:
    """Which round this is, for the server's hooks. ``attempt`` counts repetitions of one round.

    ``generator`` and ``ledger`` are for stages whose noise is drawn at the server. ``roster`` names those
    from whom the cohort was drawn by ``draw``, ``invited`` those who were asked whatever the draw;
    ``contributors`` is known once the sum is. ``planned`` tells that weights were fixed by a plan,
    ``largest_weight`` bounds them, and ``planned_total`` is what they add up to if as many come as expected.
    ``state`` is what the stages of a branch keep from round to round, by name."""

    round_id: int
    branch: str
    attempt: int
    session: str = ""
    cohort: tuple[str, ...] = ()
    generator: np.random.Generator | None = None
    ledger: Ledger | None = None
    roster: tuple[str, ...] = ()
    invited: tuple[str, ...] = ()
    draw: Draw = Draw()
    contributors: tuple[str, ...] = ()
    planned: bool = False
    largest_weight: float = 1.0
    planned_total: float | None = None
    state: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientContext:
    """Who a client party is and in which round.

    ``secret`` is 32 bytes of key material, unique to (client, round, branch, attempt); None asks the
    operating system. ``memory`` is what the client's end of the channel remembered after its last message;
    empty at the first. ``generator`` feeds whatever a stage draws at the client, whose releases go into
    ``ledger``. ``planned_weight`` is a public weight fixed by the server's plan; it replaces the pipeline's
    weighting. ``weight`` is what came of that. ``state`` is as in `RoundContext`."""

    client: str
    round_id: int
    branch: str
    attempt: int
    session: str = ""
    secret: bytes | None = field(default=None, repr=False)
    memory: bytes = field(default=b"", repr=False)
    generator: np.random.Generator | None = None
    planned_weight: float | None = None
    ledger: Ledger | None = None
    weight: float = 1.0
    state: Mapping[str, float] = field(default_factory=dict)


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
    used, with reasons; it grows from step to step."""

    rejected: dict[str, str]

    def collect(self, messages: Mapping[str, bytes]) -> bytes:
        """Advertised messages by client -> what is broadcast to them; empty unless interactive."""

    def deliver(self, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Second messages by client -> what each client that is still in gets."""

    def receive(self, payloads: Mapping[str, Payload]) -> Mapping[str, bytes]:
        """Payloads by client -> what those that sent one are asked; `RoundAborted` if there are too few."""

    def total(self, answers: Mapping[str, bytes]) -> Total:
        """Answers by client -> the sum, or `RoundAborted`."""

    def individuals(self) -> Mapping[str, Contribution]:
        """What each contributor sent, by client in the order of ids, once `receive` was called; `ViewError`
        where there is only a sum."""


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


PerSampleLoss = Callable[[Any, NDArray[np.int64]], "torch.Tensor"]
"""(model, positions (B,)) -> losses (B,), each the mean over that sample's own tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTask:
    """One local training of one client, as a local rule needs to know it; all numbers are public.

    ``nominal_records`` is the client's number of records fixed when it joined, not today's, so that
    removing a record changes neither the rate nor anybody's draw. ``steps`` is this training's number
    of steps; ``planned_steps`` the most this client will ever take, over all rounds. ``batch_size``
    is the expected one, used where the stage's configuration leaves it open.
    """

    client: str
    round_id: int
    branch: str
    attempt: int
    nominal_records: int
    steps: int
    planned_steps: int
    batch_size: float | None = None


class LocalSession(Protocol):
    """One opened local training."""

    def batch(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """One draw in [0, 1) per record -> positions of this step's batch; possibly empty."""

    def gradients(
        self,
        model: torch.nn.Module,
        positions: NDArray[np.int64],
        per_sample_loss: PerSampleLoss,
        generator: torch.Generator,
    ) -> tuple[dict[str, torch.Tensor], Metrics]:
        """Gradients by parameter name, to hand to an optimiser, and metrics that stay at the client."""


class SampleGradients(Protocol):
    """What DP-SGD asks of the gradients of R samples of K clients; nothing else is made of them."""

    def norms(self) -> torch.Tensor:
        """L2 norm of each sample's whole gradient, (R,), in fp64."""

    def sums(self, factors_R: torch.Tensor) -> torch.Tensor:
        """Each client's sum of factor times gradient, (K, D); factor 0 leaves out what is not finite, too."""


class LocalRule(Protocol):
    """Owns loss reduction and sampling of local training."""

    def expected_batch(self, task: LocalTask) -> float:
        """Records that a step has on average."""

    def affordable(self, task: LocalTask, ledger: Ledger) -> bool:
        """Whether the whole training fits the client's budget. Changes nothing."""

    def open(self, task: LocalTask, ledger: Ledger) -> LocalSession:
        """Start a training; `BudgetExceededError` if it does not fit."""

    def privatise(
        self,
        sessions: Sequence[LocalSession],
        gradients: SampleGradients,
        counts: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """One step of several clients trained together: their gradients (K, D), from those of samples.

        The first ``counts[0]`` samples belong to the first session, which has this rule like all others;
        the columns are all trained parameters in the order of their names.
        """


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

    def sum(self, total: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        """What the server does with the total, before it divides by the weight."""
        return total, {}

    def server(self, update: Vector, context: RoundContext) -> tuple[Vector, Metrics]:
        """What the server does after that."""
        return update, {}

    def channel(self, incoming: Wire, nominal: Nominal) -> Channel | None:
        """The channel this stage provides, or None."""
        return None

    def affordable(self, client: str, context: RoundContext, ledger: Ledger) -> bool:
        """Whether a client's budget allows it to be drawn in this round. Changes nothing."""
        return True

    def promise(self, nominal: Nominal, tasks: Sequence[LocalTask], *, colluders: int = 0) -> float | None:
        """The most epsilon that a whole life may cost one unit, infinite if nothing bounds it; None: no
        release.

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
    """Whether the server has something to do for ``stage`` to the cohort's sum or mean (noise, a public
    divisor, decoding), so that updates as they were sent are not yet what the stage makes of them."""
    return any(
        getattr(type(stage), hook) is not getattr(Stage, hook) for hook in ("sum", "server", "divisor")
    )
