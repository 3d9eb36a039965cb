"""On a GPU: cohorts against one client at a time, and their share of the centralised rate.

The large base has the shape of Llama-3.2-1B and random weights in bfloat16; what it says is of no matter.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.efficiency import Centralised, pool
from benchmarks.harness import Options, Ratio, Report, Variant, interleave, lowest, ratio, seconds
from benchmarks.world import Rounds, Work, batched, sequential
from fedsim.model.adapter import AdapterModel
from fedsim.model.loading import resolve_base

GIB = 2**30
GOAL_TINY, GOAL_SHARE = 20.0, 0.8
CENTRAL_BATCH_SIZES = (32, 64, 128, 256)


def run(options: Options) -> Report | None:
    """None where there is no GPU."""
    if not torch.cuda.is_available():
        print("gpu: skipped, no GPU is visible here")
        return None
    sizes = (4,) if options.small else (64, 128, 256)
    samples: dict[str, list[float]] = {}
    ratios: list[Ratio] = []
    facts: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as folder:
        large = save_large_base(Path(folder), layers=options.size(16, 2))
        for name, base, dtype in (("1B", str(large), "bfloat16"), ("tiny", "tiny-authors", "float32")):
            model: AdapterModel | None = None
            for clients in sizes:
                work = Work(
                    clients=clients, records=options.size(20, 4), base=base, dtype=dtype, device="cuda:0"
                )
                model = model or work.model()
                one = _Size(f"{name}, {clients} clients", work, model)
                found = interleave(one.variants(options), options.repeat)
                samples |= found
                ratios += one.ratios(found)
                facts |= one.facts(found)
            del model
            torch.cuda.empty_cache()
    return Report(
        name="gpu",
        title="On a GPU",
        unit="s per round",
        settings={"records": options.size(20, 4), "batch_size": 8},
        samples=samples,
        ratios=ratios,
        facts=facts,
    )


def save_large_base(folder: Path, *, layers: int) -> Path:
    """A random base of the large shape, with the embedded base's tokenizer."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.random.fork_rng(), torch.device("cuda"):
        torch.manual_seed(0)
        network = LlamaForCausalLM(config).bfloat16()
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_base("tiny-authors")).save_pretrained(folder)
    return folder


class _Size:
    """Rounds of one number of clients, and epochs over the same records."""

    def __init__(self, name: str, work: Work, model: AdapterModel) -> None:
        self.name, self.work, self.model = name, work, model
        self.peaks: dict[str, float] = {}
        self.tokens = 0

    def variants(self, options: Options) -> list[Variant]:
        together = Rounds.of(self.work, self.model, batched)
        alone = Rounds.of(self.work, self.model, sequential)
        records = pool(together, self.model)
        self.tokens = int(records.lengths_B.sum())
        timed = {"together": together.timed, "one at a time": alone.timed}
        for size in CENTRAL_BATCH_SIZES[:1] if options.small else CENTRAL_BATCH_SIZES:
            central = Centralised.of(self.model, records, lr=self.work.lr, batch_size=size)
            timed[f"centralised, batches of {size}"] = central.timed
        return [
            Variant(name=f"{self.name}, {kind}", measure=self._on_gpu(kind, f)) for kind, f in timed.items()
        ]

    def _on_gpu(self, kind: str, measure: Callable[[], float]) -> Callable[[], float]:
        """Seconds until the GPU has finished as well; notes the most memory taken."""

        def measure_to_the_end() -> None:
            measure()
            torch.cuda.synchronize()

        def measured() -> float:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            taken = seconds(measure_to_the_end)
            self.peaks[kind] = max(self.peaks.get(kind, 0.0), torch.cuda.max_memory_allocated() / GIB)
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

    def facts(self, found: dict[str, list[float]]) -> dict[str, float | str]:
        rates: dict[str, float | str] = {}
        for name in self._kinds(found).values():
            rates[f"tokens per s, {name}"] = self.tokens / statistics.median(found[name])
            rates[f"peak memory, {name}, GiB"] = self.peaks[name.removeprefix(f"{self.name}, ")]
        return rates
