"""What is asked of clients in a round: one work order each, and what the round's orders have in common.

An ordinary round asks every participant to train. An unlearning round follows its method's plan: the
forgetting client has the target's role, the round's cohort may help, and the plan fixes the weights with
which their updates are combined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from fedsim.life.events.registry import ConditionChoice
from fedsim.training.config import LocalConfig
from fedsim.unlearning.protocol import Moves, Role, ServerState
from privacy import Draw


class WorkOrder(BaseModel):
    """What the server asks of one client in one round; travels as JSON.

    ``without`` names records the client no longer uses, ``only`` the records it works on (both empty: all).
    ``conditions`` say what the scenario has different about the client. ``method``, ``role``
    and ``index`` choose the local work of an unlearning round. ``state`` is what the privacy
    stages keep from round to round. ``weight`` is set when the server's plan fixes it: at first
    that of the role, then this client's share (``with_shares``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    seed: int
    branch: str
    attempt: int = 0
    version: int
    local: LocalConfig
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    method: str | None = None
    role: Role | None = None
    index: int = 0
    weight: float | None = None
    planned_steps: int = 0
    conditions: tuple[ConditionChoice, ...] = ()
    state: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """From whom a round's cohort was sampled, and who was asked regardless.

    ``roster``: the clients that could be sampled. ``draw``: how they were. ``invited``: clients that are
    asked regardless of sampling (the forgetting client).
    """

    roster: tuple[int, ...] = ()
    draw: Draw = field(default_factory=Draw)
    invited: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedWeights:
    """Weights that a method's plan fixes: by role, what all clients in it weigh together.

    ``normalise`` says that the combined update is divided by the sum of the weights.
    """

    by_role: Mapping[Role, float]
    normalise: bool

    @property
    def total(self) -> float:
        """The sum of the planned weights."""
        return sum(self.by_role.values())

    def largest(self, helpers: float) -> float:
        """The largest weight of one client in size, where ``helpers`` share theirs: a public number."""
        shares = {"target": 1.0, "helper": max(helpers, 1.0)}
        return max((abs(weight) / shares[role] for role, weight in self.by_role.items()), default=1.0)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The orders of a round by client, and how the server combines the updates.

    ``weights`` are set when a plan fixes them. ``compares`` names the roles whose loss compares with the
    adapter at the request, ``tellers`` the clients that are asked for their loss. ``server_state`` says what
    becomes of the strategy's memory, ``moves`` what the combined update moves, ``each`` that the method
    combines (see ``RoundPlan``). ``stored`` says that some method looks back at the round, ``part`` which
    part of an ensemble lives it, if one does. ``kind`` and ``request`` label it in the cost table.
    """

    orders: Mapping[int, WorkOrder]
    sampling: Sampling = field(default_factory=Sampling)
    weights: PlannedWeights | None = None
    compares: frozenset[Role] = frozenset()
    tellers: frozenset[int] = frozenset()
    server_state: ServerState = "keep"
    moves: Moves = "adapter"
    each: bool = False
    stored: bool = False
    part: str | None = None
    kind: str = "train"
    request: int = 0


def with_shares(orders: Mapping[int, WorkOrder], helpers: float | None = None) -> dict[int, WorkOrder]:
    """Orders whose role's weight is split evenly among those who have the role; others as they are.

    ``helpers`` is a public number of helpers to divide by, where how many came must not show.
    """
    sizes: dict[Role | None, float] = dict(Counter(order.role for order in orders.values()))
    if helpers is not None:
        sizes["helper"] = max(helpers, 1.0)
    return {
        client: order
        if order.weight is None
        else order.model_copy(update={"weight": order.weight / sizes[order.role]})
        for client, order in orders.items()
    }
