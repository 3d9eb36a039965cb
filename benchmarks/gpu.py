"""On a GPU: cohorts against one client at a time, their share of the centralised rate, memory and its plan.

The large bases have the shapes of Llama-3.2-1B and, in 4 bits, of Mistral-7B, with random weights; what they
say is of no matter. One client at a time swaps adapters over the one base. In a first round a small base must
learn on the GPU what it learns on the CPU. Without a GPU, ``--small`` runs on the CPU: a few blocks of narrow
layers show that the script works, and nothing of speed.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.efficiency import Centralised, pool
from benchmarks.harness import Options, Ratio, Report, Variant, interleave, lowest, ratio, seconds
from benchmarks.world import Rounds, Work, apart, batched, sequential
from fedsim.model.adapter import AdapterModel
from fedsim.model.loading import resolve_base
from fedsim.model.shapes import known_shape
from fedsim.training.cohorts import tokens_per_step
from fedsim.training.memory import Plan, Sizes, cohort_limit
from fedsim.training.tuning import device_memory

GIB = 2**30
GOAL_TINY, GOAL_SHARE, GOAL_PLAN, GOAL_EQUAL = 20.0, 0.8, 0.1, 1e-2
CENTRAL_BATCH_SIZES = (32, 64, 128, 256)
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True, kw_only=True)
class _Base:
    """A base to measure with; ``shape`` is the name of a known one, None the embedded base itself."""

    name: str
    shape: str | None
    dtype: str
    clients: tuple[int, ...]
    quantize: str | None = None


BASES = (
    _Base(name="1B", shape="meta-llama/Llama-3.2-1B-Instruct", dtype="bfloat16", clients=(8, 64, 256)),
    _Base(
        name="7B in 4 bits",
        shape="mistralai/Mistral-7B-v0.3",
        dtype="bfloat16",
        clients=(8, 64, 256),
        quantize="4bit",
    ),
    _Base(name="tiny", shape=None, dtype="float32", clients=(64, 128, 256)),
)


def run(options: Options) -> Report | None:
    """None where there is no GPU, unless in small."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.small:
        print("gpu: skipped, no GPU is visible here")
        return None
    device = "cuda:0" if on_gpu else "cpu"
    samples: dict[str, list[float]] = {}
    ratios: list[Ratio] = []
    facts: dict[str, float | str] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    for base in BASES:
        with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as folder:
            source = _source(base, Path(folder), options)
            model: AdapterModel | None = None
            for clients in (4,) if options.small else base.clients:
                work = Work(
                    clients=clients,
                    records=options.size(20, 4),
                    base=source,
                    dtype=base.dtype,
                    device=device,
                    quantize=base.quantize if on_gpu else None,
                )
                model = model or work.model()
                one = _Size(f"{base.name}, {clients} clients", work, model)
                found = interleave(one.variants(options), options.repeat)
                samples |= found
                ratios += one.ratios(found)
                facts |= one.facts(found)
            del model, one
        if on_gpu:
            torch.cuda.empty_cache()
    distance = different(device, options)
    facts["adapter of the device apart from the CPU's by"] = distance
    ratios.append(ratio("distance from the CPU over tolerance", [distance], [GOAL_EQUAL], at_most=1.0))
    return Report(
        name="gpu",
        title="On a GPU",
        unit="s per round",
        settings={"records": options.size(20, 4), "batch_size": 8, "device": device},
        samples=samples,
        ratios=ratios,
        facts=facts,
    )


def different(device: str, options: Options) -> float:
    """How far a round on a device, together, ends from the same on the CPU, one client at a time."""
    ends, start = [], None
    for place, executor in ((device, batched), ("cpu", sequential)):
        work = Work(clients=options.size(16, 4), records=options.size(20, 4), device=place)
        rounds = Rounds.of(work, work.model(), executor)
        start = rounds.vector()
        rounds.next()
        ends.append(rounds.vector())
    assert start is not None
    return apart(ends[1], ends[0], start)


def _source(base: _Base, folder: Path, options: Options) -> str:
    """The path or name of a base, which is made in the folder if it has a known shape."""
    return "tiny-authors" if base.shape is None else str(save_base(base.shape, folder, options))


def save_base(shape: str, folder: Path, options: Options) -> Path:
    """A random base of a known shape, with the embedded base's tokenizer."""
    config = known_shape(shape)
    if options.small:
        config.update(SMALL)
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("tiny-authors"))
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    place = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.device(place):
        torch.manual_seed(0)
        make: Any = AutoModelForCausalLM.from_config
        network = make(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class _Size:
    """Rounds of one number of clients, and epochs over the same records."""

    def __init__(self, name: str, work: Work, model: AdapterModel) -> None:
        self.name, self.work, self.model = name, work, model
        self.peaks: dict[str, float] = {}
        self.base = torch.cuda.memory_allocated() if work.device != "cpu" else 0
        self.tokens = 0
        self.plan: Plan | None = None

    def _plan(self, rounds: Rounds) -> Plan:
        """The plan by which these clients go together."""
        pairs = rounds.engine.runtime.pairs.values()
        tokens = max(tokens_per_step(own, self.work.batch_size) for own in pairs)
        limit = cohort_limit(self.model, device=self.work.device)
        return Plan(
            sizes=Sizes.of(self.model),
            memory=device_memory(self.work.device),
            clients=min(self.work.clients, limit.room(tokens)),
            tokens_each=tokens,
            records=self.work.batch_size,
        )

    def variants(self, options: Options) -> list[Variant]:
        together = Rounds.of(self.work, self.model, batched)
        alone = Rounds.of(self.work, self.model, sequential)
        records = pool(together, self.model)
        self.tokens = int(records.lengths_B.sum())
        self.plan = self._plan(together)
        timed = {"together": together.timed, "one at a time": alone.timed}
        for size in CENTRAL_BATCH_SIZES[:1] if options.small else CENTRAL_BATCH_SIZES:
            central = Centralised.of(self.model, records, lr=self.work.lr, batch_size=size)
            timed[f"centralised, batches of {size}"] = central.timed
        return [
            Variant(name=f"{self.name}, {kind}", measure=self._on_gpu(kind, f)) for kind, f in timed.items()
        ]

    def _on_gpu(self, kind: str, measure: Callable[[], float]) -> Callable[[], float]:
        """Seconds until the GPU has finished as well; notes the most that base and this variant took.

        What other variants hold between their turns, as their optimisers' moments, does not count.
        """

        if self.work.device == "cpu":
            return measure

        def measure_to_the_end() -> None:
            measure()
            torch.cuda.synchronize()

        def measured() -> float:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            taken = seconds(measure_to_the_end)
            peak = (torch.cuda.max_memory_allocated() - held + self.base) / GIB
            self.peaks[kind] = max(self.peaks.get(kind, 0.0), peak)
            return taken

        return measured

    def _kinds(self, found: dict[str, list[float]]) -> dict[str, str]:
        """The fastest variant of each kind of training."""
        kinds = ("together", "one at a time", "centralised")
        return {kind: lowest(found, f"{self.name}, {kind}") for kind in kinds}

    def ratios(self, found: dict[str, list[float]]) -> list[Ratio]:
        together, alone, central = (found[name] for name in self._kinds(found).values())
        tiny = self.work.dtype == "float32"
        return [
            *self._against_the_plan(),
            ratio(
                f"{self.name}, one at a time over together",
                alone,
                together,
                at_least=GOAL_TINY if tiny else None,
            ),
            ratio(
                f"{self.name}, share of the centralised rate",
                central,
                together,
                at_least=None if tiny else GOAL_SHARE,
            ),
        ]

    def _against_the_plan(self) -> list[Ratio]:
        """Peak memory of the clients together over what was planned for them."""
        if self.plan is None or "together" not in self.peaks:
            return []
        return [
            ratio(
                f"{self.name}, peak over planned memory",
                [self.peaks["together"]],
                [self._planned(self.plan)],
                at_least=1 - GOAL_PLAN,
                at_most=1 + GOAL_PLAN,
            )
        ]

    @staticmethod
    def _planned(plan: Plan) -> float:
        return (plan.sizes.base + plan.at_once) / GIB

    def facts(self, found: dict[str, list[float]]) -> dict[str, float | str]:
        rates: dict[str, float | str] = {}
        for name in self._kinds(found).values():
            rates[f"tokens per s, {name}"] = self.tokens / statistics.median(found[name])
            kind = name.removeprefix(f"{self.name}, ")
            if kind in self.peaks:
                rates[f"peak memory, {name}, GiB"] = self.peaks[kind]
        if self.plan is not None:
            rates[f"planned memory, {self.name}, together, GiB"] = self._planned(self.plan)
        return rates
