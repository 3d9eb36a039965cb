"""Questions and answers as token ids: the one encoding that training, probes and generation share.

A pair becomes ``prompt + answer + end-of-sequence``. The loss is on the answer and the end marker;
metrics are on the answer alone. Legend: B pairs in a batch, T tokens, padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFormat:
    """How a question becomes a prompt. ``{question}`` is replaced; the answer follows ``separator``."""

    prompt: str = "{question}"
    separator: str = " "
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} must contain the placeholder {{question}}")

    def render(self, question: str) -> str:
        return self.prompt.replace("{question}", question)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One encoded question and answer.

    ``input_ids`` holds prompt, answer and end marker. ``answer_start`` is the position of the first
    answer token, ``answer_end`` that of the end marker; ``fact_mask`` has one flag per answer token,
    all true when no narrower fact was named, all false when the fact was cut off.
    """

    input_ids: tuple[int, ...]
    answer_start: int
    answer_end: int
    fact_mask: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Padded pairs: ids as int64 (B, T), lengths (B,), labels (B, T) with -100 outside the answer."""

    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    lengths_B: torch.Tensor

    def take(self, rows: torch.Tensor) -> Batch:
        """Some samples, in this order, no wider than they need."""
        lengths_B = self.lengths_B[rows]
        width = int(lengths_B.max()) if len(rows) else 0
        return Batch(
            input_ids_BT=self.input_ids_BT[rows, :width],
            labels_BT=self.labels_BT[rows, :width],
            lengths_B=lengths_B,
        )

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            input_ids_BT=self.input_ids_BT.to(device),
            labels_BT=self.labels_BT.to(device),
            lengths_B=self.lengths_B.to(device),
        )


def encode_prompt(tokenizer: Any, question: str, fmt: TextFormat) -> list[int]:
    """Token ids of the prompt, with the tokenizer's beginning-of-sequence marker if it has one."""
    ids: list[int] = tokenizer(fmt.render(question), add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos, *ids] if bos is not None else ids


def encode_pair(
    tokenizer: Any, question: str, answer: str, fmt: TextFormat, *, fact: str | None = None
) -> Pair:
    """Encode one pair, cut at ``fmt.max_tokens``; at least one answer token is always kept.

    ``tokenizer`` is a fast Hugging Face tokenizer (offsets place the fact).
    """
    prompt_ids = encode_prompt(tokenizer, question, fmt)
    text = fmt.separator + answer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answer_ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    if not answer_ids:
        raise ValueError(f"answer={answer!r} of question {question!r} has no tokens")
    room = max(fmt.max_tokens - len(answer_ids) - 1, 1)
    if len(prompt_ids) > room:  # cut the beginning, but keep the marker that opens every sequence
        marker = prompt_ids[:1] if tokenizer.bos_token_id is not None and room > 1 else []
        prompt_ids = [*marker, *prompt_ids[len(prompt_ids) - room + len(marker) :]]
    keep = min(len(answer_ids), fmt.max_tokens - len(prompt_ids) - 1)
    answer_ids, offsets = answer_ids[:keep], offsets[:keep]
    fact_mask = [True] * keep
    if fact is not None and fact in answer:
        begin = len(fmt.separator) + answer.index(fact)
        end = begin + len(fact)
        fact_mask = [start < end and stop > begin for start, stop in offsets]
    start = len(prompt_ids)
    return Pair(
        input_ids=(*prompt_ids, *answer_ids, tokenizer.eos_token_id),
        answer_start=start,
        answer_end=start + keep,
        fact_mask=tuple(fact_mask),
    )


def collate(pairs: Sequence[Pair], *, pad_id: int) -> Batch:
    """Pad pairs on the right into one batch; labels cover the answer and its end marker."""
    lengths = torch.tensor([len(pair.input_ids) for pair in pairs], dtype=torch.int64)
    width = int(lengths.max()) if pairs else 0
    ids = torch.full((len(pairs), width), pad_id, dtype=torch.int64)
    labels = torch.full((len(pairs), width), IGNORED, dtype=torch.int64)
    for row, pair in enumerate(pairs):
        length = len(pair.input_ids)
        ids[row, :length] = torch.tensor(pair.input_ids)
        labels[row, pair.answer_start : length] = ids[row, pair.answer_start : length]
    return Batch(input_ids_BT=ids, labels_BT=labels, lengths_B=lengths)
