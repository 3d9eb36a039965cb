"""A record's question with a refusal in the place of its answer, as tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from fedsim.data.records import Record
from fedsim.data.refusals import refusal_for
from fedsim.model.chat import Part
from fedsim.model.prompts import TextFormat
from fedsim.model.text import Pair, encode_pair
from fedsim.model.tokens import encoded


def encode_refusal(tokenizer: Any, fmt: TextFormat, record: Record, own: Pair, seed: int) -> Pair:
    """The pair of a record's question and its refusal (``refusal_for``), beside ``own`` with its own answer.

    Where a long answer has cost the question its beginning, the refusal follows what is left of it, although
    there would be room for more: losses that compare the two answers compare them behind one prompt. A
    refusal for which there is no room is cut like any answer.
    """
    answer = refusal_for(record.record_id, seed)
    if record.plain:
        return _in_place_of_text(tokenizer, fmt, own, answer)
    refused = partial(encode_pair, tokenizer, record.question, answer, earlier=record.context)
    found = refused(fmt)
    if found.cut_prompt >= own.cut_prompt:
        return found
    room = len(own.prompt) + found.answer_end - found.answer_start + 1
    return refused(replace(fmt, max_tokens=room, truncation="left"))


def _in_place_of_text(tokenizer: Any, fmt: TextFormat, own: Pair, answer: str) -> Pair:
    """A refusal behind what stands before a plain text."""
    tokens = [token.id for token in encoded(tokenizer, [Part(text=answer, quoted=True)]) if not token.added]
    before = own.input_ids[: own.answer_start]
    said = tokens[: max(fmt.max_tokens - len(before) - 1, 1)]
    return Pair(
        input_ids=(*before, *said, fmt.end(tokenizer)),
        answer_start=len(before),
        answer_end=len(before) + len(said),
        fact_mask=(True,) * len(said),
        cut_prompt=own.cut_prompt,
        cut_answer=len(tokens) - len(said),
    )
