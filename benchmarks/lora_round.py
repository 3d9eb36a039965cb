"""A whole round of federated LoRA: messages, local training, aggregation, against other ways to run it.

FedAvg over the embedded base with adapters of rank 8 on all linear layers; one local epoch of AdamW, eight
records a batch. Ours and one at a time run in this process, with memory kept by the allocator; Ray's actors
and pfl-research have their own processes, which run apart from everything else. Where threads can be chosen,
each choice is a variant and the fastest one counts. After the first round all adapters must be the same up to
rounding.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks import pfl, ray_runtime
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
from benchmarks.world import SEED, Rounds, Work, apart, batched, sequential
from fedsim.model.vectors import to_vector
from fedsim.training.tuning import keep_freed_memory

GOALS_RAY = {4: 5.0, 20: 2.0, 80: 1.3}
GOAL_PFL = 2.0
CLOSE = 0.02
"""Largest distance of two adapters after one round, over the length of their way: AdamW's first steps turn
rounding of small gradients into steps of full size."""


def run(options: Options) -> Report:
    keep_freed_memory()
    clients, rounds = options.size(100, 6), options.size(2, 1)
    samples: dict[str, list[float]] = {}
    ratios: list[Ratio] = []
    facts: dict[str, float | str] = {}
    missing = pfl.why_not_available()
    if missing is not None:
        facts["peer pfl not available"] = missing
    for records in (4,) if options.small else tuple(GOALS_RAY):
        one = _Size(Work(clients=clients, records=records), options, rounds=rounds, with_pfl=missing is None)
        found = interleave(one.variants(), options.repeat)
        samples |= {f"{records} records, {name}": values for name, values in found.items()}
        ours = found[lowest(found, "fedsim")]
        ratios += [
            ratio(f"{records} records, ray over fedsim", found["ray"], ours, at_least=GOALS_RAY[records]),
            ratio(
                f"{records} records, one at a time over fedsim", found[lowest(found, "one at a time")], ours
            ),
        ]
        if missing is None:
            peer = found[lowest(found, "pfl")]
            ratios.append(ratio(f"{records} records, pfl over fedsim", peer, ours, at_least=GOAL_PFL))
        facts[f"{records} records, startup of ray, s"] = statistics.median(one.startups)
        facts |= {f"{records} records, adapter of {n} apart by": far for n, far in one.distances().items()}
    return Report(
        name="lora_round",
        title="A round of federated LoRA",
        unit="s per round",
        settings={"clients": clients, "batch_size": 8, "epochs": 1, "rank": 8, "optimizer": "adamw"},
        samples=samples,
        ratios=ratios,
        facts=facts,
    )


class _Size:
    """All ways to run rounds of one size; keeps each way's adapter after its first round."""

    def __init__(self, work: Work, options: Options, *, rounds: int, with_pfl: bool) -> None:
        self.work, self.rounds, self.with_pfl, self.threads = work, rounds, with_pfl, options.threads
        self.model = work.model()
        self.startups: list[float] = []
        self.first: dict[str, NDArray[np.float32]] = {}

    def variants(self) -> list[Variant]:
        found = []
        for name, executor in (("fedsim", batched), ("one at a time", sequential)):
            federation = Rounds.of(self.work, self.model, executor)
            found += [
                Variant(
                    name=f"{name}, threads={threads}",
                    measure=with_threads(threads, self._next(name, federation)),
                )
                for threads in self.threads
            ]
        found.append(Variant(name="ray", measure=self._ray, warms_itself=True))
        if self.with_pfl:
            peer = pfl.Peer.of(self.work)
            found += [
                Variant(name=f"pfl, {shape.name}", measure=self._pfl(peer, shape), warms_itself=True)
                for shape in pfl.shapes(self.threads)
            ]
        return found

    def distances(self) -> Mapping[str, float]:
        """How far the adapters of other ways are from ours; RuntimeError if they did not do the same."""
        start = to_vector(self.model.fresh(SEED))
        found = {
            name: apart(self.first["fedsim"], other, start)
            for name, other in self.first.items()
            if name != "fedsim"
        }
        if max(found.values()) > CLOSE:
            raise RuntimeError(f"adapters after the first round differ by {found}, more than {CLOSE}")
        return found

    def _next(self, name: str, federation: Rounds) -> Callable[[], float]:
        def measure() -> float:
            taken = federation.timed()
            if len(federation.seconds) == 1:
                self.first[name] = federation.vector()
            return taken

        return measure

    def _ray(self) -> float:
        found = ray_runtime.measure_rounds(self.work, rounds=self.rounds)
        self.startups.append(found["startup"])
        self.first["ray"] = found["result-adapter"]
        return float(statistics.median(found["rounds"]))

    def _pfl(self, peer: pfl.Peer, shape: pfl.Shape) -> Callable[[], float]:
        def measure() -> float:
            found = peer.measure(shape, rounds=self.rounds)
            self.first[f"pfl, {shape.name}"] = found["result-adapter"]
            return float(statistics.median(found["rounds"]))

        return measure
