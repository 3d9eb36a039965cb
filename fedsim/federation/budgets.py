"""Who can afford a round: clients whose privacy budget is spent are neither asked nor sampled."""

from __future__ import annotations

from dataclasses import replace

from fedsim.federation.attempt import Engine
from fedsim.federation.orders import Assignment, WorkOrder
from fedsim.federation.state import Federation
from privacy import Draw, RoundContext


def affordable_orders(
    assignment: Assignment, branch: str, federation: Federation, engine: Engine
) -> tuple[dict[int, WorkOrder], tuple[int, ...]]:
    """The orders of clients whose privacy budget allows this round, and the clients whose budget is spent."""
    sampling = assignment.sampling
    rule = engine.runtime.pipeline.local_rule()

    def allowed(client: int, order: WorkOrder) -> bool:
        task = engine.runtime.task(client, order)
        if rule is not None and task is not None and not rule.affordable(task, federation.ledger):
            return False
        draw = sampling.draw if client in sampling.roster else None
        return _budget_allows(client, branch, draw, client in sampling.invited, federation, engine)

    orders = {client: order for client, order in assignment.orders.items() if allowed(client, order)}
    return orders, tuple(client for client in assignment.orders if client not in orders)


def with_affordable_roster(
    assignment: Assignment, branch: str, federation: Federation, engine: Engine
) -> Assignment:
    """Keep those alone who could have been sampled: whoever's budget is spent could not."""
    sampling = assignment.sampling
    if not engine.runtime.pipeline.central:
        return assignment
    left = tuple(
        client
        for client in sampling.roster
        if _budget_allows(client, branch, sampling.draw, False, federation, engine)
    )
    return replace(assignment, sampling=replace(sampling, roster=left))


def _budget_allows(
    client: int, branch: str, draw: Draw | None, invited: bool, federation: Federation, engine: Engine
) -> bool:
    """Whether the privacy stages can afford this client in a round.

    Without a ``draw`` it could not be sampled.
    """
    name = str(client)
    alone = RoundContext(
        round_id=federation.round,
        branch=branch,
        roster=() if draw is None else (name,),
        invited=(name,) if invited else (),
        draw=Draw() if draw is None else draw,
    )
    return engine.runtime.pipeline.affordable(name, alone, federation.ledger)
