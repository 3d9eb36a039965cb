"""Clients' local trainings as the privacy accountant sees them."""

from __future__ import annotations

from fedsim.federation.orders import WorkOrder
from fedsim.federation.runtime import local_task
from fedsim.living.context import LifeContext
from privacy import LocalTask


def life_tasks(context: LifeContext) -> list[LocalTask]:
    """One local training of each client, as the accountant sees it."""
    planned = context.engine.planner.planned_steps
    records = context.engine.runtime.records
    return [life_task(context, client) for client, held in records.items() if held and planned.get(client)]


def life_task(context: LifeContext, client: int) -> LocalTask:
    """A local training of ``client`` outside all rounds, with the steps that its whole life has planned."""
    planner = context.engine.planner
    order = WorkOrder(
        round=0,
        seed=0,
        branch="",
        version=0,
        local=planner.local,
        planned_steps=planner.planned_steps.get(client, 0),
    )
    return local_task(client, order, nominal_records=len(context.engine.runtime.records[client]))
