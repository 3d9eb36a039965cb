"""What all benchmarks share: interleaved repetitions, medians, ratios, tables, one JSON file each.

Variants take turns (A B A B ...), so that whatever else happens on a machine happens to all of them. A ratio
is one of medians; its range is that of the ratios of neighbours, which ran within the same turn.

>>> taken = interleave([Variant(name="a", measure=lambda: 2.0), Variant(name="b", measure=lambda: 1.0)], 3)
>>> ratio("a over b", taken["a"], taken["b"], at_least=1.5).met
True
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsim.storage.provenance import provenance
from fedsim.storage.whole import write_json
from fedsim.training.tuning import cores

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a benchmark is run: repetitions of each variant, threads that are tried, and whether in small."""

    repeat: int = 3
    small: bool = False
    threads: tuple[int, ...] = (1, 2)

    def size(self, full: int, small: int) -> int:
        """A size of the benchmark proper, or of its small form."""
        return small if self.small else full


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing to measure. ``measure`` gives a number, mostly seconds.

    Processes of their own warm up inside: they need no repetition that is thrown away.
    """

    name: str
    measure: Callable[[], float]
    warms_itself: bool = False


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of medians with its range over turns; the goal is a lower (``at_least``) or an upper bound."""

    name: str
    value: float
    lowest: float
    highest: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a benchmark found: ``samples`` by variant in ``unit``, ratios, and what else there is to say."""

    name: str
    title: str
    unit: str
    settings: Mapping[str, Any]
    samples: Mapping[str, Sequence[float]]
    ratios: Sequence[Ratio] = ()
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "settings": dict(self.settings),
            "samples": {name: list(values) for name, values in self.samples.items()},
            "medians": {name: statistics.median(values) for name, values in self.samples.items()},
            "ratios": [asdict(one) | {"met": one.met} for one in self.ratios],
            "facts": dict(self.facts),
            "machine": machine(),
        }

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.json"
        write_json(path, self.as_json())
        return path


def interleave(variants: Sequence[Variant], repeat: int) -> dict[str, list[float]]:
    """Measure every variant ``repeat`` times in turns, after each has run once for nothing."""
    for variant in variants:
        if not variant.warms_itself:
            variant.measure()
    samples: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(repeat):
        for variant in variants:
            samples[variant.name].append(variant.measure())
    return samples


def seconds(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_threads(threads: int, measure: Callable[[], float]) -> Callable[[], float]:
    """``measure`` with so many threads of torch."""

    def measured() -> float:
        torch.set_num_threads(threads)
        return measure()

    return measured


def lowest(samples: Mapping[str, Sequence[float]], prefix: str) -> str:
    """The variant with the lowest median of those whose name begins with ``prefix``."""
    names = [name for name in samples if name.startswith(prefix)]
    return min(names, key=lambda name: statistics.median(samples[name]))


def ratio(
    name: str,
    over: Sequence[float],
    under: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Ratio:
    """The median of ``over`` divided by that of ``under``, with the range over turns."""
    turns = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(
        name=name,
        value=statistics.median(over) / statistics.median(under),
        lowest=min(turns),
        highest=max(turns),
        at_least=at_least,
        at_most=at_most,
    )


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions and source state."""
    found = provenance(seeds=(), resolved={})
    packages = dict(found["packages"])
    with suppress(importlib.metadata.PackageNotFoundError):
        packages["ray"] = importlib.metadata.version("ray")
    return {
        **{key: found[key] for key in ("python", "platform", "cpu", "git")},
        "cores": cores(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": packages,
    }
