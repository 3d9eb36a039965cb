"""Which round this is, who takes part and how they were drawn: what stages are told, and checked against.

>>> Draw(kind="poisson", rate=0.5, population=40).expected()
20.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from privacy.accounting import Sampling
from privacy.ledger import Ledger


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
    many would be there had nobody been forgotten: a public number, by which means are taken.
    """

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
    ``max_update_norm`` is the longest update that the server takes where no stage bounds them;
    ``invitations`` to how many of them one client may be asked whatever the draw. ``cohort_known`` says that
    the adversary knows who takes part.
    """

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
    max_update_norm: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundContext:
    """Which round this is, for the server's hooks. ``attempt`` counts repetitions of one round.

    ``generator`` and ``ledger`` are for stages whose noise is drawn at the server. ``roster`` names those
    from whom the cohort was drawn by ``draw``, ``invited`` those who were asked whatever the draw;
    ``contributors`` is known once the sum is. ``planned_weights`` are those that a plan fixed, by client of
    the cohort; ``counts`` are the numbers of examples that the server knows those clients to train on, where
    updates are weighted by them. ``largest_weight`` bounds planned weights by a number that does not depend
    on who was sampled, and ``planned_total`` is what they add up to if as many come as expected. ``state`` is
    what the stages of a branch keep from round to round, by name.
    """

    round_id: int
    branch: str
    attempt: int = 0
    session: str = ""
    cohort: tuple[str, ...] = ()
    generator: np.random.Generator | None = None
    ledger: Ledger | None = None
    roster: tuple[str, ...] = ()
    invited: tuple[str, ...] = ()
    draw: Draw = Draw()
    contributors: tuple[str, ...] = ()
    planned_weights: Mapping[str, float] | None = None
    counts: Mapping[str, float] | None = None
    largest_weight: float | None = None
    planned_total: float | None = None
    state: Mapping[str, float] = field(default_factory=dict)

    def weight_bound(self) -> float:
        """The largest weight of one client in size: ``largest_weight``, else the largest that was planned."""
        if self.largest_weight is not None or self.planned_weights is None:
            return 1.0 if self.largest_weight is None else self.largest_weight
        return max(map(abs, self.planned_weights.values()), default=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientContext:
    """Who a client party is and in which round.

    ``secret`` is 32 bytes of key material, unique to (client, round, branch, attempt); None asks the
    operating system. ``memory`` is what the client's end of the channel remembered after its last message;
    empty at the first. ``generator`` feeds whatever a stage draws at the client, whose releases go into
    ``ledger``. ``planned_weight`` is a public weight fixed by the server's plan; it replaces the pipeline's
    weighting. ``weight`` is what came of that. ``state`` is as in `RoundContext`.
    """

    client: str
    round_id: int
    branch: str
    attempt: int = 0
    session: str = ""
    secret: bytes | None = field(default=None, repr=False)
    memory: bytes = field(default=b"", repr=False)
    generator: np.random.Generator | None = None
    planned_weight: float | None = None
    ledger: Ledger | None = None
    weight: float = 1.0
    state: Mapping[str, float] = field(default_factory=dict)
