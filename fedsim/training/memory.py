"""A plan of a device's memory, and how many clients train at once by it; from sizes alone.

Beside the base, training needs each client's vectors and what a joint step holds until its backward pass is
over. How many clients go together follows from the same numbers, so plan and choice cannot disagree; they are
sizes and not measurements, so equal scenarios form equal cohorts and give equal bytes.

>>> kept = Kept(whole=3e5, block=1e5, inputs=2e5, logits=4e4, passing=5e4)
>>> sizes = Sizes(base=2 * 10**9, in_4_bits=10**9, dimension=1_000_000, kept=kept, checkpointing=False)
>>> plan = Plan(sizes=sizes, memory=8 * 10**9, clients=4, tokens_each=1000, records=8)
>>> plan.sentence()
'base 2.0 GB, 4 clients at once 1.6 GB, of 8.0 GB'
>>> plan.why_not(), replace(plan, tokens_each=30_000, clients=1).why_not()[1]
(None, ('federation', 'local', 'micro_batch'))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch

from fedsim.model.adapter import AdapterModel
from fedsim.model.quantising import Quantize, base_bytes
from fedsim.training.cohorts import CohortLimit
from fedsim.training.kept import Kept, by_sizes, kept_per_token
from fedsim.training.tuning import cores, device_memory

CPU_TOKENS = 2048
"""Tokens of a joint step on a CPU: enough to keep matrix products busy, few enough for its caches."""
GPU_TOKENS = 16_384
"""More fill no GPU better."""
CLIENTS = 1024
STACKED_COPIES = 8
"""Vectors that a client needs in a cohort: start, parameters, gradients, moments, what is in between."""
USABLE = 0.9
"""Share of a device's memory that a plan may take; the rest is its libraries', and lost between tensors."""
FOR_STEPS, FOR_VECTORS = 0.5, 0.2
"""Shares of what the base leaves; the rest is for what example-level DP keeps of the backward pass."""
SAFE = 4.0
"""How many times an estimate by sizes alone must fit before nothing is counted."""
KeyPath = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes: bytes of its base, as it is and in 4 bits; trained parameters; what steps keep."""

    base: int
    in_4_bits: int
    dimension: int
    kept: Kept
    checkpointing: bool

    @classmethod
    def of(cls, model: AdapterModel, quantize: Quantize | None = None, *, kept: Kept | None = None) -> Sizes:
        """Sizes of a model; with ``quantize``, as they will be once its weights are."""
        base = base_bytes(model.module, quantize)
        return cls(
            base=base,
            in_4_bits=base if model.device == "cpu" else min(base, base_bytes(model.module, "4bit")),
            dimension=sum(parameter.numel() for parameter in model.parameters().values()),
            kept=kept or kept_per_token(model),
            checkpointing=model.checkpoints,
        )

    @property
    def client(self) -> int:
        """Bytes of a client's vectors in a cohort."""
        return 4 * STACKED_COPIES * self.dimension

    @property
    def token(self) -> float:
        """Bytes per token of a joint step."""
        return self.kept.peak(checkpointing=self.checkpointing)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a device is to hold: the base, and of each of ``workers`` cohorts so many clients.

    Each client has ``tokens_each`` tokens of ``records`` records in a part of a step.
    """

    sizes: Sizes
    memory: int
    clients: int
    tokens_each: int
    records: int
    workers: int = 1
    asked: int | None = None
    """Clients of a cohort, if the scenario says so."""
    in_parts: bool = True
    """Whether a step can be computed in parts; example-level DP takes it whole."""

    @property
    def at_once(self) -> float:
        """Bytes of all that train at once."""
        each = self.sizes.client + self.tokens_each * self.sizes.token
        return self.workers * self.clients * each

    @property
    def fits(self) -> bool:
        """Whether base and clients leave the device the rest that it needs."""
        return self.fits_times(1.0)

    def fits_times(self, factor: float) -> bool:
        """Whether it would fit if clients took so many times what the plan says."""
        return self.sizes.base + factor * self.at_once <= USABLE * self.memory

    def sentence(self) -> str:
        """The plan in a few words."""
        number = self.clients * self.workers
        what = f"{number} clients at once" if number > 1 else "a client"
        base, at_once, memory = map(gigabytes, (self.sizes.base, self.at_once, self.memory))
        return f"base {base}, {what} {at_once}, of {memory}"

    def why_not(self) -> tuple[str, KeyPath] | None:
        """Why it cannot be, with the nearest that can and the key to turn; None for a plan that fits."""
        if self.fits:
            return None
        said = f"{self.sentence()}, of which {1 - USABLE:.0%} stay free: does not fit"
        fewer = None if self.asked is None else self._fewer()
        ways = [] if fewer is None else [[f"execution.cohort: {fewer}"]]
        ways += (self if fewer is not None else replace(self, clients=1))._ways()
        if not ways:
            return f"{said}; nearest that does: {self._smallest()}", ("model", "base")
        key = tuple(ways[0][0].partition(":")[0].split("."))
        return f"{said}; nearest that does: {', or '.join(map(' with '.join, ways))}", key

    def _ways(self) -> list[list[str]]:
        """The fewest settings with which a plan fits, each way of as many; none where all do not do."""
        found: list[list[str]] = []
        for parts, checkpointing, coarse in sorted(product((False, True), repeat=3), key=sum):
            way = self._turned(parts=parts, checkpointing=checkpointing, coarse=coarse)
            if way and (not found or len(way) == len(found[0])):
                found.append(way)
        return sorted(found, key=lambda way: "batch" not in way[0])

    def _turned(self, *, parts: bool, checkpointing: bool, coarse: bool) -> list[str] | None:
        """The settings that make it so; None where one is so already, or they do not do."""
        plan, words = self, []
        if self.asked not in (None, self.clients):
            words.append(f"execution.cohort: {self.clients}")
        if checkpointing:
            plan = plan._with(checkpointing=True)
            words.append("model.checkpointing: true")
        if coarse:
            plan = plan._with(base=self.sizes.in_4_bits)
            words.append("model.quantize: 4bit")
        if (checkpointing and self.sizes.checkpointing) or (coarse and plan.sizes.base == self.sizes.base):
            return None
        if parts:
            most = next((n for n in range(self.records - 1, 0, -1) if plan.with_records(n).fits), None)
            if most is None:
                return None
            plan = plan.with_records(most)
            words.insert(0, f"federation.local.{'micro_batch' if self.in_parts else 'batch_size'}: {most}")
        return words if plan.fits else None

    def _smallest(self) -> str:
        """What would do where no setting does."""
        alone = replace(self, clients=1).with_records(1)._with(checkpointing=True, base=self.sizes.in_4_bits)
        needed = math.ceil((alone.sizes.base + alone.at_once) / USABLE / 1e8) * 1e8
        coarse = "in 4 bits, " if self.sizes.in_4_bits < self.sizes.base else ""
        return f"a smaller base, or {gigabytes(needed)} for it {coarse}checkpointed, record by record"

    def with_records(self, records: int) -> Plan:
        """The same with so many records in a part of a step."""
        return replace(self, records=records, tokens_each=-(-self.tokens_each * records // self.records))

    def _with(self, **changed: object) -> Plan:
        return replace(self, sizes=replace(self.sizes, **changed))  # type: ignore[arg-type]

    def _fewer(self) -> int | None:
        """Clients of a cohort that fit, if there is such a number."""
        each = self.workers * (self.sizes.client + self.tokens_each * self.sizes.token)
        number = int((USABLE * self.memory - self.sizes.base) / each)
        return number if 1 <= number < self.clients else None


def limit_by(sizes: Sizes, *, memory: int, most: int, workers: int = 1) -> CohortLimit:
    """How many clients go together in a device's memory, with ``most`` tokens in a joint step."""
    free = max(USABLE * memory - sizes.base, 0.0) / workers
    return CohortLimit(
        clients=_at_most(CLIENTS, FOR_VECTORS * free / sizes.client),
        tokens=_at_most(most, FOR_STEPS * free / sizes.token),
    )


def cohort_limit(model: AdapterModel, *, device: str) -> CohortLimit:
    """How many clients of a model go together on a device; on a CPU, every core may have a cohort at once.

    Nothing is counted where memory is plenty.
    """
    on_gpu = device.startswith("cuda")
    most, workers = (GPU_TOKENS, 1) if on_gpu else (CPU_TOKENS, cores())
    memory = device_memory(device)
    rough = by_sizes(model)
    sizes = Sizes.of(model, kept=rough)
    if limit_by(sizes, memory=memory, most=round(SAFE * most), workers=workers).tokens < SAFE * most:
        sizes = Sizes.of(model)
    return limit_by(sizes, memory=memory, most=most, workers=workers)


def workers_on(device: str) -> int:
    """Cohorts that may train at once on a device."""
    return 1 if device.startswith("cuda") else min(cores(), torch.get_num_threads())


def _at_most(bound: int, value: float) -> int:
    return max(1, min(bound, int(value)))


def gigabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e9:.1f} GB"
