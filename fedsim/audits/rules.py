"""The run's example-level rule for a single step that takes every record: its noise, without its sampling."""

from __future__ import annotations

from fedsim.client import local_task
from fedsim.orders import WorkOrder
from fedsim.simulation import LifeContext
from privacy import ExampleDpRule


def bare(context: LifeContext, rule: ExampleDpRule, client: int) -> ExampleDpRule:
    """``rule`` with the noise that ``client`` has in this life, whatever the records of a step."""
    planner = context.engine.planner
    life = WorkOrder(
        round=0,
        seed=0,
        branch="audit",
        version=0,
        local=planner.local,
        planned_steps=planner.planned_steps.get(client, 0),
    )
    task = local_task(client, life, nominal_records=len(context.engine.runtime.records[client]))
    changes = {
        "noise_multiplier": rule.noise_multiplier(task),
        "target_epsilon": None,
        "batch_size": None,
        "sample_rate": 1.0,
    }
    return ExampleDpRule(rule.config.model_copy(update=changes))
