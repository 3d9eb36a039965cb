"""Who does what in a round: a timeline step becomes one work order per client.

An ordinary round asks every participant to train. An unlearning round follows its method's plan: the
forgetting client has the target's role, the round's cohort may help, and the plan fixes the weights with
which their updates are combined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedsim.events import DropStage
from fedsim.scenario import FixedCohort, LocalConfig
from fedsim.timeline import Participant, Step
from fedsim.unlearning.protocol import MethodConfig, Request, Role, RoundPlan, ServerState, Work
from privacy import Draw


class WorkOrder(BaseModel):
    """What the server asks of one client in one round; travels as JSON.

    ``without`` names records the client no longer uses, ``only`` the records it works on (both empty: all).
    ``drop`` is the step at which the client falls silent, if it is scripted to. ``method`` and ``role``
    choose the local loss of an unlearning round. ``state`` is what the privacy
    stages keep from round to round. ``weight`` is set when the server's plan fixes it: at first
    that of the role, then this client's share (``with_shares``)."""

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
    weight: float | None = None
    proximal_mu: float = 0.0
    planned_steps: int = 0
    drop: DropStage | None = None
    state: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The orders of a round by client, and how the server combines the updates.

    ``planned`` tells that the orders carry the weights; ``normalise`` that the combination is divided by
    their sum. The cohort was drawn from ``roster`` by ``draw``; ``invited`` are asked whatever the draw;
    ``planned_total`` is what the weights add up to, ``role_weights`` what all who have a role weigh together.
    ``needs_reference`` says that some loss of the method compares with the adapter at the request.
    ``server_state`` says what becomes of the strategy's memory. ``kind`` and ``request`` are for the
    books."""

    orders: Mapping[int, WorkOrder]
    planned: bool = False
    normalise: bool = True
    needs_reference: bool = False
    kind: str = "train"
    request: int = 0
    server_state: ServerState = "keep"
    roster: tuple[int, ...] = ()
    draw: Draw = field(default_factory=Draw)
    invited: tuple[int, ...] = ()
    planned_total: float | None = None
    role_weights: Mapping[Role, float] = field(default_factory=dict)

    def largest_weight(self, helpers: float | None) -> float | None:
        """The largest weight of one client that the plan allows for, where ``helpers`` is a public number."""
        if not self.planned or helpers is None:
            return None
        shares = {"target": 1.0, "helper": max(helpers, 1.0)}
        return max((abs(weight) / shares[role] for role, weight in self.role_weights.items()), default=1.0)


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


def draw_of(rule: float | FixedCohort, *, here: int, nominal: int) -> Draw:
    """How cohorts are drawn, as the accountant sees it.

    ``here`` is how many could be drawn, ``nominal`` how many could be had nobody been forgotten. The latter
    is the public one; a fixed cohort is filled up from the former unless places stay empty."""
    if isinstance(rule, FixedCohort) and rule.rate is not None:
        return Draw(
            kind="truncated_poisson",
            rate=rule.rate,
            population=max(here, 1),
            size=rule.cohort,
            nominal=nominal,
        )
    if isinstance(rule, FixedCohort):
        population = nominal if rule.replacement == "none" else here
        return Draw(
            kind="without_replacement", population=max(population, 1), size=rule.cohort, nominal=nominal
        )
    kind: Literal["none", "poisson"] = "none" if rule == 1.0 else "poisson"
    return Draw(kind=kind, rate=rule, population=nominal, nominal=nominal)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Writes the orders of one life's rounds; holds what is the same in all of them.

    ``planned_steps`` is the most local steps each client may take in this life, for noise calibration.
    ``rosters`` says who is there in each round of each branch, and ``participation`` how cohorts are drawn of
    them."""

    seed: int
    local: LocalConfig
    methods: Mapping[str, MethodConfig]
    requests: Mapping[int, Request]
    proximal_mu: float
    planned_steps: Mapping[int, int]
    rosters: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)
    participation: float | FixedCohort = 1.0

    def assign(self, step: Step, branch: str, version: int) -> Assignment:
        """The orders of a step for clients that start from adapter ``version``."""
        roster = self._roster(step, branch)
        drawn = draw_of(self.participation, here=len(roster), nominal=step.nominal_size)
        if step.unlearning is None:
            orders = {p.client: self._ordinary(step, branch, version, p) for p in step.cohort}
            return Assignment(orders=orders, roster=roster, draw=drawn)
        method = self.methods[step.unlearning.branch]
        request = self.requests[step.unlearning.request]
        plan = method.plan(request, step.unlearning.index)
        settings = method.model_dump_json()
        orders = {}
        helpers = [p for p in step.cohort if plan.target is None or p.client != request.client]
        if plan.helper is not None:
            for helper in helpers:
                order = self._ordinary(step, branch, version, helper)
                orders[helper.client] = self._in_role(order, plan.helper, settings, "helper")
        if plan.target is not None:
            order = self._ordinary(step, branch, version, Participant(client=request.client))
            order = order.model_copy(update={"only": request.record_ids})
            orders[request.client] = self._in_role(order, plan.target, settings, "target")
        works: tuple[tuple[Role, Work | None], ...] = (("target", plan.target), ("helper", plan.helper))
        weights = {role: work.weight for role, work in works if work is not None}
        return Assignment(
            orders=orders,
            roster=roster,
            draw=drawn,
            invited=() if plan.target is None else (request.client,),
            role_weights=weights,
            planned_total=sum(weights.values()),
            planned=True,
            normalise=plan.combine == "mean",
            needs_reference=any(method.objective(role).needs_reference for role in _roles(plan)),
            kind="unlearn",
            request=request.number,
            server_state=plan.server_state,
        )

    def _roster(self, step: Step, branch: str) -> tuple[int, ...]:
        if branch in self.rosters:
            return tuple(self.rosters[branch][step.round - 1])
        return tuple(participant.client for participant in step.cohort)

    def is_last(self, step: Step) -> bool:
        """Whether a step is the last unlearning round for its request."""
        unlearning = step.unlearning
        return (
            unlearning is not None
            and unlearning.index == self.methods[unlearning.branch].unlearning_rounds - 1
        )

    def _ordinary(self, step: Step, branch: str, version: int, participant: Participant) -> WorkOrder:
        return WorkOrder(
            round=step.round,
            seed=self.seed,
            branch=branch,
            version=version,
            local=self.local,
            without=participant.without,
            proximal_mu=self.proximal_mu,
            planned_steps=self.planned_steps.get(participant.client, 0),
            drop=dict(step.drops).get(participant.client),
        )

    def _in_role(self, order: WorkOrder, work: Work, settings: str, role: Role) -> WorkOrder:
        overrides = {"lr": work.lr, "epochs": work.epochs}
        local = self.local.model_copy(update={k: v for k, v in overrides.items() if v is not None})
        changes = {"method": settings, "role": role, "weight": work.weight, "local": local}
        return order.model_copy(update=changes)


def _roles(plan: RoundPlan) -> tuple[Role, ...]:
    """The roles that a plan gives work to."""
    named: tuple[tuple[Role, Work | None], ...] = (("target", plan.target), ("helper", plan.helper))
    return tuple(role for role, work in named if work is not None)
