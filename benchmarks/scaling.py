"""From fifty clients to two thousand: time of each one that takes part, and memory for those who do not."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.children import function, read_settings, run_child, write_result
from benchmarks.harness import Options, Ratio, Report, Variant, interleave, lowest, ratio, with_threads
from benchmarks.world import FACTS, Rounds, Work
from fedsim.training.tuning import keep_freed_memory

SIZES = (50, 200, 1000, 2000)
REGISTERED = (100, 2000)
COHORT = 20
FLAT = 1.2
GOAL_MEMORY = 1.2
KIB = 1024


def run(options: Options) -> Report:
    keep_freed_memory()
    sizes = (4, 8) if options.small else SIZES
    registered = (10, 40) if options.small else REGISTERED
    times = interleave(
        [
            Variant(name=f"{clients} clients, threads={threads}", measure=with_threads(threads, one))
            for clients in sizes
            for one in [_per_client(clients)]
            for threads in options.threads
        ],
        options.repeat,
    )
    memory, bases = _memory(registered, options)
    best = [times[lowest(times, f"{clients} clients,")] for clients in sizes]
    few, many = (memory[clients] for clients in registered)
    return Report(
        name="scaling",
        title="From few clients to many",
        unit="ms per client",
        settings={"records": FACTS, "batch_size": 8, "cohort for memory": COHORT},
        samples=times,
        ratios=[
            *(
                ratio(f"time per client, {clients} over {sizes[0]} clients", taken, best[0], at_most=FLAT)
                for clients, taken in zip(sizes[1:], best[1:], strict=True)
            ),
            _spread(best),
            ratio(
                f"peak memory, {registered[1]} over {registered[0]} registered clients",
                many,
                few,
                at_most=GOAL_MEMORY,
            ),
        ],
        facts={
            **{
                f"peak memory, {clients} registered, MiB": statistics.median(memory[clients])
                for clients in registered
            },
            "memory before anything is loaded, MiB": statistics.median(bases),
        },
    )


def _spread(best: list[list[float]]) -> Ratio:
    """The slowest size over the fastest."""
    ordered = sorted(best, key=statistics.median)
    return ratio("time per client, slowest over fastest size", ordered[-1], ordered[0], at_most=FLAT)


def _per_client(clients: int) -> Callable[[], float]:
    """Milliseconds per client of a round of all of them."""
    work = Work(clients=clients, records=FACTS)
    federation = Rounds.of(work, work.model())
    return lambda: 1000 * federation.timed() / clients


def _memory(registered: tuple[int, ...], options: Options) -> tuple[dict[int, list[float]], list[float]]:
    """Peak memory of processes in MiB by registered clients, and what each had before loading anything."""
    peaks: dict[int, list[float]] = {clients: [] for clients in registered}
    bases = []
    for _ in range(options.repeat):
        for clients in registered:
            settings = {
                "work": Work(clients=clients, records=FACTS).as_settings(),
                "rounds": options.size(5, 1),
            }
            found = run_child(function("benchmarks.scaling:remember"), settings)
            peaks[clients].append(found["peak"])
            bases.append(found["base"])
    return peaks, bases


def remember(folder: Path) -> None:
    """The child process behind the memory figures: rounds of a cohort that moves through all clients."""
    base = _peak()
    settings = read_settings(folder)
    work = Work(**settings["work"])
    federation = Rounds.of(work, work.model())
    size = min(COHORT, work.clients)
    for round_ in range(settings["rounds"]):
        first = round_ * size % work.clients
        federation.next(sorted((first + offset) % work.clients for offset in range(size)))
    write_result(folder, {"peak": _peak(), "base": base})


def _peak() -> float:
    """Largest resident memory of this process so far, in MiB.

    Linux counts for getrusage what the process was before it became this program: a copy of its parent.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / KIB
