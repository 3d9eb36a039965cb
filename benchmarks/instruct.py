"""A round on a real instruct model: SmolLM2-135M, told in ordinary English through its chat template.

Ours, one client at a time, Flower's runtime on Ray with the same client, and plain centralised training over
the same tokens take turns. All start from the same adapter; a round and an epoch have the same tokens,
padding not counted.
"""

from __future__ import annotations

import statistics

from benchmarks import ray_runtime
from benchmarks.efficiency import Centralised, pool
from benchmarks.harness import Options, Report, Variant, interleave, lowest, ratio, with_threads
from benchmarks.world import Rounds, Work, batched, sequential
from fedsim.training.tuning import keep_freed_memory

GOAL_RAY, GOAL_PLAIN = 1.5, 0.95
BASE = "models/smollm2-135m"
BATCH_SIZES = (8, 16, 32)


def run(options: Options) -> Report:
    """Needs the model that ``make smollm2`` writes; in small, the embedded base stands for it."""
    keep_freed_memory()
    real = {"base": BASE, "prompt": "chat", "natural": True, "rank": 16}
    work = Work(clients=8, records=options.size(9, 3), **({} if options.small else real))  # type: ignore[arg-type]
    model = work.model()
    ours, alone = (Rounds.of(work, work.model(), executor) for executor in (batched, sequential))
    records = pool(ours, model)
    tokens = int(records.lengths_B.sum())
    timed = {"fedsim": ours.timed, "one at a time": alone.timed}
    for size in BATCH_SIZES[: options.size(len(BATCH_SIZES), 1)]:
        central = Centralised.of(work.model(), records, lr=work.lr, batch_size=size)
        timed[f"centralised, batches of {size}"] = central.timed
    startups: list[float] = []

    def ray() -> float:
        found = ray_runtime.measure_rounds(work, rounds=options.size(2, 1))
        startups.append(found["startup"])
        return float(statistics.median(found["rounds"]))

    samples = interleave(
        [
            Variant(name=f"{name}, threads={threads}", measure=with_threads(threads, measure))
            for name, measure in timed.items()
            for threads in options.threads
        ]
        + [Variant(name="ray", measure=ray, warms_itself=True)],
        options.repeat,
    )
    best = {kind: lowest(samples, kind) for kind in ("fedsim", "one at a time", "centralised")}
    mine = samples[best["fedsim"]]
    return Report(
        name="instruct",
        title="A round on a real instruct model",
        unit="s per round of all clients",
        settings={"clients": work.clients, "records": work.records, "rank": work.rank, "base": work.base},
        samples=samples,
        ratios=[
            ratio("ray over fedsim", samples["ray"], mine, at_least=GOAL_RAY),
            ratio(f"{best['one at a time']} over fedsim", samples[best["one at a time"]], mine),
            ratio(
                f"{best['centralised']} over fedsim", samples[best["centralised"]], mine, at_least=GOAL_PLAIN
            ),
        ],
        facts={
            "tokens of a round": tokens,
            "tokens per s, fedsim": tokens / statistics.median(mine),
            "startup of ray, s": statistics.median(startups),
        },
    )
