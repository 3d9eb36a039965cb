"""Who does what in a round: a timeline step becomes one work order per client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsim.federation.draws import draw_of
from fedsim.federation.orders import Assignment, PlannedWeights, Sampling, WorkOrder
from fedsim.life.config import FixedCohort
from fedsim.life.events.protocol import Condition
from fedsim.life.steps import Participant, Step, UnlearningStep, part_of
from fedsim.model.vectors import Arrays
from fedsim.training.config import LocalConfig
from fedsim.unlearning.protocol import MethodConfig, Role, Work
from fedsim.unlearning.request import Request


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Writes the orders of one life's rounds; holds what is the same in all of them.

    ``requests`` go by branch and number, as the branch's method answers them. ``planned_steps`` is the most
    local steps each client may take in this life, for noise calibration. ``rosters`` says who is there in
    each round of each branch, and ``participation`` how cohorts are drawn of them. ``rounds`` is how many the
    life has, for schedules.
    """

    seed: int
    rounds: int
    local: LocalConfig
    methods: Mapping[str, MethodConfig]
    requests: Mapping[tuple[str, int], Request]
    planned_steps: Mapping[int, int]
    rosters: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)
    participation: float | FixedCohort = 1.0

    def assign(
        self, step: Step, branch: str, version: int, kept: Mapping[int, Mapping[str, Arrays]] | None = None
    ) -> Assignment:
        """The orders of a step for clients that start from adapter ``version``.

        ``kept`` is what requests have kept (``Federation.kept``).
        """
        if step.unlearning is not None:
            own = (kept or {}).get(step.unlearning.request, {})
            return self._unlearning(step, step.unlearning, branch, version, own)
        orders = {p.client: self._ordinary(step, branch, version, p) for p in step.cohort}
        stored = any(method.stores(step.round) for method in self.methods.values())
        return Assignment(
            orders=orders, sampling=self._sampling(step, branch), stored=stored, part=part_of(branch)
        )

    def _unlearning(
        self,
        step: Step,
        unlearning: UnlearningStep,
        branch: str,
        version: int,
        kept: Mapping[str, Arrays],
    ) -> Assignment:
        """The orders of a round that follows a method's plan."""
        method, request = self.methods[unlearning.branch], self.request(unlearning)
        plan = method.weigh(method.plan(request, unlearning.index), kept)
        work_of = plan.work()
        local_of = {role: method.local(role, unlearning.index) for role in work_of}
        settings = method.model_dump_json()
        orders = {}
        if "helper" in work_of:
            for helper in step.cohort:
                if "target" not in work_of or helper.client != request.client:
                    order = self._ordinary(step, branch, version, helper)
                    orders[helper.client] = self._in_role(
                        order, work_of["helper"], settings, "helper", unlearning
                    )
        if "target" in work_of:
            forgotten = tuple(sorted(self._forgotten_before(unlearning)))
            participant = Participant(client=request.client, without=forgotten)
            order = self._ordinary(step, branch, version, participant)
            order = order.model_copy(update={"only": request.record_ids})
            orders[request.client] = self._in_role(order, work_of["target"], settings, "target", unlearning)
        weights = {role: work.weight for role, work in work_of.items()}
        by_name = method.helped_by(request, unlearning.index) is not None
        invited = tuple(c for c, order in orders.items() if by_name or order.role == "target")
        return Assignment(
            orders=orders,
            sampling=replace(self._sampling(step, branch), invited=invited),
            weights=PlannedWeights(by_role=weights, normalise=plan.combine == "mean"),
            compares=frozenset(role for role in work_of if local_of[role].objective.needs.reference),
            tellers=frozenset(
                client for client, order in orders.items() if order.role and local_of[order.role].tells
            ),
            server_state=plan.server_state,
            moves=plan.moves,
            each=plan.combine == "each",
            kind="unlearn",
            request=request.number,
        )

    def _sampling(self, step: Step, branch: str) -> Sampling:
        roster = self._roster(step, branch)
        draw = draw_of(self.participation, here=len(roster), nominal=step.nominal_size)
        return Sampling(roster=roster, draw=draw)

    def there(self, step: Step, branch: str, before: int = 0) -> int:
        """How many clients have been there so far in a branch, or had been so many rounds ago."""
        if branch not in self.rosters:
            return step.nominal_size
        return len(set().union(*self.rosters[branch][: step.round - before]))

    def _roster(self, step: Step, branch: str) -> tuple[int, ...]:
        if branch in self.rosters:
            return tuple(self.rosters[branch][step.round - 1])
        return tuple(participant.client for participant in step.cohort)

    def is_last(self, step: Step) -> bool:
        """Whether a step is the last unlearning round for its request."""
        unlearning = step.unlearning
        if unlearning is None:
            return False
        rounds = self.methods[unlearning.branch].rounds_for(self.request(unlearning))
        return unlearning.index == rounds - 1

    def request(self, unlearning: UnlearningStep) -> Request:
        """The request that an unlearning round answers."""
        return self.requests[unlearning.branch, unlearning.request]

    def _forgotten_before(self, unlearning: UnlearningStep) -> set[str]:
        """What the client of a request has asked to forget before, and does not ask for now."""
        now = self.request(unlearning)
        return {
            name
            for (branch, number), request in self.requests.items()
            if branch == unlearning.branch and number < now.number and request.client == now.client
            for name in request.record_ids
        } - set(now.record_ids)

    def _ordinary(self, step: Step, branch: str, version: int, participant: Participant) -> WorkOrder:
        conditions = dict(step.conditions).get(participant.client, ())
        return WorkOrder(
            round=step.round,
            seed=self.seed,
            branch=branch,
            version=version,
            local=_under(conditions, self.local.in_round(step.round, self.rounds)),
            without=participant.without,
            planned_steps=self.planned_steps.get(participant.client, 0),
            conditions=conditions,
        )

    def _in_role(
        self, order: WorkOrder, work: Work, settings: str, role: Role, unlearning: UnlearningStep
    ) -> WorkOrder:
        own = {"method": settings, "role": role, "index": unlearning.index}
        scheduled = self.local.in_round(order.round, self.rounds)
        local = _under(order.conditions, scheduled.instead(lr=work.lr, epochs=work.epochs))
        return order.model_copy(update={**own, "weight": work.weight, "local": local})


def _under(conditions: Sequence[Condition], local: LocalConfig) -> LocalConfig:
    """Local training under conditions, one after the other."""
    for condition in conditions:
        local = condition.local(local)
    return local
