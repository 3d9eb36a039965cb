"""A probe: a fixed set of questions, encoded once.

Each record gives several token sequences: the question with its answer, with the paraphrased answer and with
each wrong answer (as TOFU does, Maini et al., 2024, arXiv:2401.06121), and the paraphrased question with the
answer. Sequences that occur twice are scored once; all lie in one tensor, those with a common beginning next
to each other, so that a batch is a slice. TOFU's metrics (probability, truth ratio, choice) count the end
marker of an answer as its published evaluation does, all others the answer's own tokens. Legend: I records,
S sequences, T positions, A answer positions, N answer tokens and end markers in all, W wrong answers, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.records import Record
from fedsim.metrics.arrays import BoolArray
from fedsim.model.plain import encode_record
from fedsim.model.prompts import TextFormat
from fedsim.model.text import Pair, encode_pair

ProbeKind = Literal["forget", "retain", "public"]

NO_ROW = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A named set of records, ready to be scored; build it with ``build_probe``.

    ``ids_ST`` and ``lengths_S`` hold the sequences in the order of their tokens. Answer token n belongs to
    sequence ``row_N[n]``, is predicted at ``position_N[n]`` and is ``target_N[n]``; ``fact_N`` marks facts,
    ``end_N`` end markers, which follow an answer that was not cut. ``pairs_I`` are the records as trained,
    and ``right`` what greedy answers are compared with. ``*_row_I`` and ``wrong_rows_IW`` say which sequence
    serves a record, -1 for none. ``max_new_tokens`` (the longest answer of any kind, in tokens) bounds
    generation.
    """

    name: str
    records: tuple[Record, ...]
    pairs_I: tuple[Pair, ...]
    right: tuple[str, ...]
    max_new_tokens: int
    ids_ST: torch.Tensor
    lengths_S: NDArray[np.int64]
    row_N: NDArray[np.int64]
    position_N: NDArray[np.int64]
    target_N: torch.Tensor
    fact_N: BoolArray
    end_N: BoolArray
    answer_row_I: NDArray[np.int64]
    asked_otherwise_row_I: NDArray[np.int64]
    truth_row_I: NDArray[np.int64]
    wrong_rows_IW: NDArray[np.int64]

    @property
    def left_out(self) -> int:
        """Wrong answers that are the right one once cut."""
        given = sum(len(record.perturbed_answers) for record in self.records)
        return given - int((self.wrong_rows_IW != NO_ROW).sum())

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """What generation begins with: the prompts of training, cut as there."""
        return [pair.prompt for pair in self.pairs_I]


def build_probe(tokenizer: Any, name: str, records: Sequence[Record], fmt: TextFormat) -> Probe:
    """Encode the records once. Order and content are fixed from here on.

    A record without a paraphrased answer uses its answer in that place, as TOFU's public sets do: the wrong
    answers imitate it. Long texts are cut as in training (``fmt.max_tokens``). A wrong answer that is the
    right one once both are cut is left out: it tells nothing.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError(f"probe {name!r} has no records; a probe needs one at least")
    pairs: dict[Pair, int] = {}

    add = partial(_told, tokenizer, fmt, pairs)
    answers = [pairs.setdefault(encode_record(tokenizer, record, fmt), len(pairs)) for record in records]
    asked_otherwise = [add(r, r.paraphrased_question, r.answer, r.fact) for r in records]
    truths = [
        answer
        if record.paraphrased_answer is None
        else add(record, record.question, record.paraphrased_answer)
        for record, answer in zip(records, answers, strict=True)
    ]
    offered = [
        [add(record, record.question, text) for text in record.perturbed_answers] for record in records
    ]
    listed = list(pairs)
    told = [_otherwise(rows, both, listed) for rows, *both in zip(offered, truths, answers, strict=True)]
    wrong = _padded(told, width=max(map(len, offered)))
    order = sorted(range(len(listed)), key=[pair.input_ids for pair in listed].__getitem__)
    rank = np.append(np.argsort(order), NO_ROW)
    return Probe(
        name=name,
        records=tuple(records),
        pairs_I=tuple(listed[row] for row in answers),
        right=tuple(map(partial(_right, tokenizer), records, (listed[row] for row in answers))),
        max_new_tokens=max(pair.answer_end - len(pair.prompt) for pair in pairs),
        **_layout([listed[index] for index in order]),
        answer_row_I=rank[answers],
        asked_otherwise_row_I=rank[asked_otherwise],
        truth_row_I=rank[truths],
        wrong_rows_IW=rank[wrong],
    )


def _otherwise(rows: Sequence[int], right: Sequence[int], listed: Sequence[Pair]) -> list[int]:
    """The rows whose tokens are not those of a right answer."""
    same = {listed[row].input_ids for row in right}
    return [row for row in rows if listed[row].input_ids not in same]


def _told(
    tokenizer: Any,
    fmt: TextFormat,
    pairs: dict[Pair, int],
    record: Record,
    question: str | None,
    answer: str | None,
    fact: str | None = None,
) -> int:
    """The row among ``pairs`` of another question or answer in a record's conversation, added if need be."""
    if question is None or answer is None:
        return NO_ROW
    told = encode_pair(tokenizer, question, answer, fmt, fact=fact, earlier=record.context)
    return pairs.setdefault(told, len(pairs))


def _right(tokenizer: Any, record: Record, pair: Pair) -> str:
    """The right answer in words: of plain text, what follows the tokens that generation begins with."""
    if not record.plain:
        return record.answer
    return str(tokenizer.decode(pair.input_ids[len(pair.prompt) : pair.answer_end], skip_special_tokens=True))


def _padded(rows: Sequence[Sequence[int]], *, width: int) -> NDArray[np.int64]:
    """Rows of different length as one array, filled up with ``NO_ROW``."""
    filled = np.full((len(rows), width), NO_ROW)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled


def _fed_length(pair: Pair) -> int:
    """Tokens up to the one that predicts the last token."""
    return len(pair.input_ids) - 1


def _layout(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Tensors of the sequences and flat indices of their answer tokens, in the order of ``pairs``."""
    lengths = np.array([_fed_length(pair) for pair in pairs])
    ids = torch.zeros((len(pairs), int(lengths.max())), dtype=torch.int64)
    for row, pair in enumerate(pairs):
        ids[row, : lengths[row]] = torch.tensor(pair.input_ids[: lengths[row]])
    targets = [pair.input_ids[pair.answer_start :] for pair in pairs]
    ends = [[False] * len(pair.fact_mask) + [True] * pair.ended for pair in pairs]
    return {
        "ids_ST": ids,
        "lengths_S": lengths,
        "row_N": np.repeat(np.arange(len(pairs)), [len(tokens) for tokens in targets]),
        "position_N": np.concatenate([np.arange(p.answer_start - 1, len(p.input_ids) - 1) for p in pairs]),
        "target_N": torch.tensor([token for tokens in targets for token in tokens]),
        "fact_N": np.array([flag for pair in pairs for flag in (*pair.fact_mask, *[False] * pair.ended)]),
        "end_N": np.array([flag for flags in ends for flag in flags]),
    }
