"""Questions and answers as token ids: the one encoding that training, probes and generation share.

A pair is one text, ``prompt + separator + answer``, which the base's own tokenizer encodes as a whole;
offsets tell the answer's tokens from the prompt's. So markers at the beginning, normalisers and merges across
the boundary are what the tokenizer makes of them. An end-of-sequence marker follows, unless the answer was
cut. The loss is on the answer and the end marker, and on earlier answers that are trained. Legend: B pairs in
a batch, T tokens, padded on the right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch

from fedsim.data.records import Turn
from fedsim.model.chat import Part
from fedsim.model.prompts import TextFormat
from fedsim.model.tokens import Token, encoded

Item = TypeVar("Item")
IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One encoded question and answer.

    ``input_ids`` holds prompt, answer and end marker. ``answer_start`` is the position of the first
    answer token, ``answer_end`` that after the last, where the end marker stands if the answer is whole.
    ``fact_mask`` has one flag per answer token, all true when no narrower fact was named, all false when the
    fact was cut off. ``earlier_trained`` are positions in the prompt that are learned like the answer.
    ``cut_prompt`` and ``cut_answer`` count the tokens for which there was no room. Plain text has no end
    marker, and ``continues_at`` is where generation goes on with it.
    """

    input_ids: tuple[int, ...]
    answer_start: int
    answer_end: int
    fact_mask: tuple[bool, ...]
    earlier_trained: tuple[int, ...] = ()
    cut_prompt: int = 0
    cut_answer: int = 0
    continues_at: int | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        """What generation begins with: the tokens before the answer, or what plain text goes on from."""
        return self.input_ids[: self.answer_start if self.continues_at is None else self.continues_at]

    @property
    def ended(self) -> bool:
        """Whether the end marker follows the answer: not when there was no room for all of it."""
        return self.answer_end < len(self.input_ids)

    @property
    def is_cut(self) -> bool:
        """Whether there was no room for the whole answer with its end marker, where it has one."""
        return self.cut_answer > 0 if self.continues_at is not None else not self.ended


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Padded pairs: ids as int64 (B, T), lengths (B,), labels (B, T) with -100 where nothing is trained."""

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


def encode_pair(
    tokenizer: Any,
    question: str,
    answer: str,
    fmt: TextFormat,
    *,
    fact: str | None = None,
    earlier: Sequence[Turn] = (),
) -> Pair:
    """Encode one pair, behind the ``earlier`` turns of its conversation.

    Of a conversation that is too long the oldest exchanges go, behind its system message. Where one exchange
    is still too long with that, ``fmt.truncation`` says what goes first. ``left``: the beginning of the
    prompt, then the end of the answer. ``right``: the end of the answer, then the beginning of the prompt.

    ``tokenizer`` is a fast Hugging Face tokenizer with an end-of-sequence marker. At most ``fmt.max_tokens``
    tokens are kept, at least one of the prompt and one of the answer, and the markers with which the
    tokenizer opens every sequence. ``fact`` is looked for as whole words first.

    Raises:
        ValueError: the answer has no tokens, nothing stands before it, or the chat template fails.
    """
    parts = fmt.parts(question, answer, earlier)
    prompt, spoken = _at_the_border(tokenizer, parts, fmt)
    _check_tokens(prompt, spoken, question, answer)
    fewer = _without_oldest(earlier)
    if len(fewer) < len(earlier) and len(prompt) + len(spoken) + 1 > fmt.max_tokens:
        pair = encode_pair(tokenizer, question, answer, fmt, fact=fact, earlier=fewer)
        return replace(pair, cut_prompt=len(prompt) - len(pair.prompt))
    behind = 1 if fmt.truncation == "right" else len(spoken) + 1
    opening = sum(token.added for token in prompt)
    kept = without_beginning(prompt, opening, max(fmt.max_tokens - behind, 1))
    whole = len(kept) + len(spoken) + 1 <= fmt.max_tokens
    said = spoken if whole else spoken[: max(fmt.max_tokens - len(kept), 1)]
    ids = [token.id for token in (*kept, *said)]
    return Pair(
        input_ids=(*ids, fmt.end(tokenizer)) if whole else tuple(ids),
        answer_start=len(kept),
        answer_end=len(ids),
        fact_mask=tuple(_fact_mask(said, fact, parts)),
        earlier_trained=tuple(_trained(kept, parts)) if earlier else (),
        cut_prompt=len(prompt) - len(kept),
        cut_answer=len(spoken) - len(said),
    )


def _check_tokens(prompt: Sequence[Token], spoken: Sequence[Token], question: str, answer: str) -> None:
    if not spoken:
        raise ValueError(f"answer={answer!r} of question {question!r} has no tokens")
    if not prompt:
        raise ValueError(
            f"no token stands before the answer of question {question!r}; put words into the prompt"
        )


def _at_the_border(tokenizer: Any, parts: Sequence[Part], fmt: TextFormat) -> tuple[list[Token], list[Token]]:
    """The tokens of the prompt and those of the answer, of one text.

    With a chat template the prompt's are those that it has when nothing follows; where the text as a whole
    has others, the answer is encoded by itself.
    """
    templated, end = fmt.chat is not None, fmt.end(tokenizer)
    tokens = encoded(tokenizer, parts, templated=templated, end=end)
    boundary = sum(len(part.text) for part in parts if not part.answers)
    start = next((index for index, token in enumerate(tokens) if token.end > boundary), len(tokens))
    prompt, spoken = tokens[:start], tokens[start:]
    if templated:
        asked, answered = ([part for part in parts if part.answers == side] for side in (False, True))
        alone = encoded(tokenizer, asked, templated=True, end=end)
        if [token.id for token in alone] != [token.id for token in prompt]:
            own = encoded(tokenizer, answered, templated=True, end=end)
            moved = (replace(t, start=t.start + boundary, end=t.end + boundary) for t in own if not t.added)
            return alone, list(moved)
    return prompt, spoken


def without_beginning(prompt: Sequence[Item], opening: int, room: int) -> Sequence[Item]:
    """The end of a prompt, behind the markers that open it, in as many tokens as there is room for."""
    if len(prompt) <= room:
        return prompt
    opening = min(opening, room - 1)
    return [*prompt[:opening], *prompt[len(prompt) - room + opening :]]


def _without_oldest(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Turns with those up to the first answer left out, but for a system message."""
    told = 1 if turns and turns[0].role == "system" else 0
    answers = (place for place, turn in enumerate(turns) if turn.role == "assistant")
    return [*turns[:told], *turns[next(answers, len(turns) - 1) + 1 :]]


def _trained(prompt: Sequence[Token], parts: Sequence[Part]) -> Iterator[int]:
    """Positions of a prompt, but the first, whose tokens share characters with a trained part."""
    ends = list(accumulate(len(part.text) for part in parts))
    spans = [(end - len(part.text), end) for part, end in zip(parts, ends, strict=True) if part.trained]
    for place, token in enumerate(prompt[1:], start=1):
        if any(token.start < end and token.end > begin for begin, end in spans):
            yield place


def _fact_mask(said: Sequence[Token], fact: str | None, parts: Sequence[Part]) -> list[bool]:
    """Which answer tokens share characters with the fact; all of them when there is no narrower fact."""
    place = next(place for place, part in enumerate(parts) if part.answers and part.quoted)
    answer, offset = parts[place].text, sum(len(part.text) for part in parts[:place])
    if fact is None or fact not in answer:
        return [True] * len(said)
    words = re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", answer)
    begin = offset + (words.start() if words else answer.index(fact))
    return [token.start < begin + len(fact) and token.end > begin for token in said]


def collate(pairs: Sequence[Pair], *, pad_id: int) -> Batch:
    """Pad pairs on the right into one batch.

    Labels cover the answer and, if it is whole, its end marker, and what else is trained.
    """
    lengths = torch.tensor([len(pair.input_ids) for pair in pairs], dtype=torch.int64)
    width = int(lengths.max()) if pairs else 0
    ids = torch.full((len(pairs), width), pad_id, dtype=torch.int64)
    labels = torch.full((len(pairs), width), IGNORED, dtype=torch.int64)
    for row, pair in enumerate(pairs):
        length = len(pair.input_ids)
        ids[row, :length] = torch.tensor(pair.input_ids)
        trained = [*pair.earlier_trained, *range(pair.answer_start, length)]
        labels[row, trained] = ids[row, trained]
    return Batch(input_ids_BT=ids, labels_BT=labels, lengths_B=lengths)
