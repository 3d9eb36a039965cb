"""A recipe for a small base model, and the training that follows it.

Architecture: Llama (Touvron et al., 2023, arXiv:2302.13971), random initialisation, trained with AdamW
on a one-cycle schedule. For hundreds of steps the model has the formats and not the facts; then the loss
falls (facts are stored and can be looked up by name). A base stopped before that learns new authors
badly, one past it learns them in a few rounds. Starting with few authors shortens the wait (Zucchet et
al., 2025, arXiv:2503.21676).

The same recipe with the same thread count gives the same bytes. Nothing global is seeded.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsim.data.records import Record
from fedsim.model.forward import forward
from fedsim.model.prompts import TextFormat
from fedsim.model.text import Batch, collate, encode_pair
from fedsim.rng import stream, torch_stream

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRecipe:
    """How a base model is trained. ``threads`` is part of it: it fixes the order of float sums.

    The first ``starter_steps`` (share of the steps) see only the last ``starter_rows`` (share of the
    pairs): few facts, seen often, teach looking up by name; the other facts then come fast.
    """

    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 512
    steps: int = 4000
    batch_size: int = 64
    peak_lr: float = 2e-3
    weight_decay: float = 0.01
    starter_steps: float = 0.15
    starter_rows: float = 0.2
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "threads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} of a base recipe must be >= 1; nearest: 1")


def wrap_tokenizer(backend: Any) -> Any:
    """A ``tokenizers`` object as a fast Hugging Face tokenizer with the markers fedsim uses.

    It opens every text with the beginning-of-sequence marker.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    opening = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    own = backend.post_processor
    backend.post_processor = processors.Sequence([own, opening]) if own is not None else opening
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(recipe: BaseRecipe, tokenizer: Any) -> Any:
    """A randomly initialised Llama; the global generators are left as they were."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        # transformers initialises from the global generator and takes no other.
        torch.random.set_rng_state(torch_stream(recipe.seed, "base", "init").get_state())
        model: Any = LlamaForCausalLM(config)
    return model.float()


def train_base(model: Any, batch: Batch, recipe: BaseRecipe, *, log: Callable[[str], None] = print) -> float:
    """Train in place on rows of ``batch``; returns the mean loss of the last tenth (nats per token).

    The loss is each sample's mean over its own answer tokens and end marker, then the mean of samples.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_lr, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.peak_lr, total_steps=recipe.steps + 1, pct_start=0.1
    )
    rows = _row_order(len(batch.lengths_B), recipe)
    losses: list[float] = []
    started = time.perf_counter()
    model.train()
    for step in range(recipe.steps):
        chosen = rows[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        loss = forward(model, batch.take(chosen)).mean_nll.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            log(_progress(step + 1, losses, recipe.steps, time.perf_counter() - started))
    model.eval()
    tail = losses[-max(recipe.steps // 10, 1) :]
    return sum(tail) / len(tail)


def _row_order(samples: int, recipe: BaseRecipe) -> torch.Tensor:
    """Sample positions for all steps, shape (steps * batch_size,): starters first, then all."""
    wanted = recipe.steps * recipe.batch_size
    early = int(recipe.steps * recipe.starter_steps) * recipe.batch_size
    few = max(int(samples * recipe.starter_rows), 1)
    starters = _epochs("starters", few, early, recipe.seed) + (samples - few)
    return torch.cat([starters, _epochs("all", samples, wanted - early, recipe.seed)])


def _epochs(phase: str, samples: int, wanted: int, seed: int) -> torch.Tensor:
    """The first ``wanted`` positions of shuffled epochs over ``samples``."""
    orders = [
        torch.from_numpy(stream(seed, "base", phase, epoch).permutation(samples))
        for epoch in range(-(-wanted // samples))
    ]
    return torch.cat([torch.empty(0, dtype=torch.int64), *orders])[:wanted]


def _progress(step: int, losses: Sequence[float], steps: int, seconds: float) -> str:
    recent = losses[-100:]
    rate = step / seconds
    return (
        f"step {step}/{steps}  loss {sum(recent) / len(recent):.4f}  "
        f"{rate:.1f} steps/s  {(steps - step) / rate:.0f} s left"
    )


@torch.no_grad()
def fact_probability(model: Any, tokenizer: Any, records: Sequence[Record]) -> float:
    """Mean over records of the mean probability of the tokens that carry the fact."""
    fmt = TextFormat()
    total = 0.0
    for begin in range(0, len(records), 256):
        pairs = [
            encode_pair(tokenizer, record.question, record.answer, fmt, fact=record.fact)
            for record in records[begin : begin + 256]
        ]
        ids_BT = collate(pairs, pad_id=tokenizer.pad_token_id).input_ids_BT
        probs_BTV = model(input_ids=ids_BT).logits.float().softmax(-1)
        for row, pair in enumerate(pairs):
            places = [pair.answer_start + k for k, is_fact in enumerate(pair.fact_mask) if is_fact]
            picked = [probs_BTV[row, place - 1, pair.input_ids[place]] for place in places]
            total += float(torch.stack(picked).mean())
    return total / len(records)


def save_model(model: Any, tokenizer: Any, card: str, out: Path) -> None:
    """Write a Hugging Face model directory beside ``out``, then put it in its place."""
    temporary, retired = (out.with_name(f".{out.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (temporary, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    if out.exists():
        out.rename(retired)
    temporary.rename(out)
    shutil.rmtree(retired, ignore_errors=True)


def encode_all(tokenizer: Any, pairs: Sequence[tuple[str, str]], fmt: TextFormat) -> Batch:
    """All pairs as one padded batch, from which training takes rows."""
    encoded = [encode_pair(tokenizer, question, answer, fmt) for question, answer in pairs]
    return collate(encoded, pad_id=tokenizer.pad_token_id)
