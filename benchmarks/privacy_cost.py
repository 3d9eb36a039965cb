"""What privacy costs: rounds with private local training, and with masked updates, over those without."""

from __future__ import annotations

from benchmarks.harness import (
    Options,
    Ratio,
    Report,
    Variant,
    interleave,
    lowest,
    ratio,
    with_threads,
)
from benchmarks.world import Rounds, Work
from fedsim.training.tuning import keep_freed_memory

EXAMPLE_DP = ({"stage": "example_dp", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-5},)
MASKS = ({"stage": "clip", "norm": 1.0}, {"stage": "secure_aggregation", "neighbours": 20})
GOAL_DP, GOAL_MASKS = 1.5, 1.15


def run(options: Options) -> Report:
    keep_freed_memory()
    clients = options.size(100, 6)
    samples: dict[str, list[float]] = {}
    ratios: list[Ratio] = []
    for name, privacy, records, goal in (
        ("example_dp", EXAMPLE_DP, options.size(20, 4), GOAL_DP),
        ("clip and secure_aggregation", MASKS, options.size(80, 8), GOAL_MASKS),
    ):
        work = Work(clients=clients, records=records)
        model = work.model()
        plain, private = f"without, {records} records", f"{name}, {records} records"
        rounds = {plain: Rounds.of(work, model), private: Rounds.of(work, model, privacy=privacy)}
        found = interleave(
            [
                Variant(name=f"{kind}, threads={threads}", measure=with_threads(threads, one.timed))
                for kind, one in rounds.items()
                for threads in options.threads
            ],
            options.repeat,
        )
        over, under = found[lowest(found, private)], found[lowest(found, plain)]
        ratios.append(ratio(f"{private} over without", over, under, at_most=goal))
        samples |= found
    return Report(
        name="privacy_cost",
        title="What privacy costs",
        unit="s per round",
        settings={"clients": clients, "batch_size": 8, "masks": MASKS[1]},
        samples=samples,
        ratios=ratios,
    )
