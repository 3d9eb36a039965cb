"""One round of secure aggregation by phase: 200 clients, 100,000 parameters, 20 neighbours; a tenth drops
out.

Every client is rebuilt from its memory for every message, as in a simulation. The rival is what no protocol
with such masks can do without: drawing and adding one key stream for each mask."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import Options, Report, Variant, interleave, ratio
from privacy import Nominal, Payload, Pipeline, build_pipeline
from privacy.clipping import ClipConfig
from privacy.contexts import ClientContext, RoundContext
from privacy.secagg import SecureAggregationConfig
from privacy.secagg.masks import stream

NEIGHBOURS = 20
HERE: dict[str, Any] = {"round_id": 1, "branch": "main"}


def run(options: Options) -> Report:
    clients, size = options.size(200, 12), options.size(100_000, 500)
    neighbours = min(NEIGHBOURS, clients // 2)
    pipeline = build_pipeline(
        [ClipConfig(norm=1.0), SecureAggregationConfig(neighbours=neighbours)],
        nominal=Nominal(max_cohort=clients, max_weight=1.0, dimension=size),
    )
    updates = np.random.default_rng(0).normal(0, 1e-3, (clients, size)).astype(np.float32)
    phases: dict[str, list[float]] = {}

    def whole() -> float:
        taken = _round(pipeline, updates, dropping=clients // 10)
        for name, seconds in taken.items():
            phases.setdefault(name, []).append(seconds)
        return sum(taken.values())

    def masks_alone() -> float:
        started = time.perf_counter()
        total = np.zeros(size, dtype=np.uint32)
        for number in range(clients * (neighbours + 1)):
            np.add(total, stream(number.to_bytes(32, "little"), length=size), out=total)
        return time.perf_counter() - started

    samples = interleave(
        [Variant(name="whole round", measure=whole), Variant(name="masks alone", measure=masks_alone)],
        options.repeat,
    )
    return Report(
        name="secure_aggregation",
        title="Secure aggregation",
        unit="s",
        settings={
            "clients": clients,
            "parameters": size,
            "neighbours": neighbours,
            "dropouts": clients // 10,
        },
        samples=samples,
        ratios=[
            ratio(
                "whole round over drawing and adding the masks",
                samples["whole round"],
                samples["masks alone"],
            )
        ],
        facts={f"{name}, s": round(statistics.median(values), 3) for name, values in phases.items()},
    )


def _round(pipeline: Pipeline, updates: np.ndarray[Any, Any], *, dropping: int) -> dict[str, float]:
    """Seconds of each phase; the last ``dropping`` clients fall silent once they have masked."""
    names = [f"client-{number:04d}" for number in range(len(updates))]
    memory: dict[str, bytes] = {}
    taken: dict[str, float] = {}

    def timed(phase: str, what: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = what()
        taken[phase] = time.perf_counter() - started
        return found

    def say(name: str, what: Callable[[Any], Any]) -> Any:
        party = pipeline.client(
            ClientContext(client=name, secret=name.encode().ljust(32), memory=memory.get(name, b""), **HERE)
        )
        said = what(party)
        memory[name] = party.memory
        return said

    server = pipeline.open_round(RoundContext(cohort=tuple(names), **HERE))
    adverts = timed("clients advertise", lambda: {n: say(n, lambda p: p.advertise()) for n in names})
    roster = timed("server collects", lambda: server.collect(adverts))
    shares = timed("clients share", lambda: {n: say(n, lambda p: p.share(roster)) for n in names})
    deliveries = timed("server delivers", lambda: server.deliver(shares))
    rows = dict(zip(names, updates, strict=True))

    def mask(name: str) -> Payload:
        sent: Payload = say(name, lambda p: p.prepare(rows[name], delivery=deliveries[name]).payload)
        return sent

    payloads = timed("clients mask", lambda: {name: mask(name) for name in names})
    kept = {name: payloads[name] for name in names[: len(names) - dropping]}
    requests = timed("server receives", lambda: server.receive(kept))

    def unmask(name: str) -> bytes:
        said: bytes = say(name, lambda p: p.unmask(requests[name]))
        return said

    answers = timed("clients unmask", lambda: {name: unmask(name) for name in requests})
    timed("server unmasks", lambda: server.aggregate(answers))
    return taken
