"""The run's example-level rule for a single step that takes every record: its noise, without its sampling."""

from __future__ import annotations

from fedsim.living.context import LifeContext
from fedsim.living.tasks import life_task
from privacy import ExampleDpRule


def bare(context: LifeContext, rule: ExampleDpRule, client: int) -> ExampleDpRule:
    """``rule`` with the noise that ``client`` has in this life, whatever the records of a step."""
    changes = {
        "noise_multiplier": rule.noise_multiplier(life_task(context, client)),
        "target_epsilon": None,
        "batch_size": None,
        "sample_rate": 1.0,
    }
    return ExampleDpRule(rule.config.model_copy(update=changes))
