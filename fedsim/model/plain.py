"""Plain text as token ids: every token but the first is predicted, and nothing stands around it.

A chunk is a text of at most ``max_tokens`` tokens. Training and likelihoods take all of it; generation is
given its first half and has to go on. A continuation is a text that follows a given one, and alone is
predicted; of a long one the end is cut, and of what was given its beginning, until each has half of the room.
Neither is followed by an end marker.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from math import ceil
from typing import Any

from fedsim.data.records import Record
from fedsim.model.chat import Part
from fedsim.model.prompts import TextFormat
from fedsim.model.text import Pair, encode_pair, without_beginning
from fedsim.model.tokens import encoded


def encode_record(tokenizer: Any, record: Record, fmt: TextFormat) -> Pair:
    """A record as it is trained and asked: a question with its answer, or plain text.

    Raises:
        ValueError: there is nothing to predict, or the chat template does not take the record; names it.
    """
    try:
        return _encoded(tokenizer, record, fmt)
    except ValueError as error:
        raise ValueError(f"record {record.record_id}: {error}") from error


def _encoded(tokenizer: Any, record: Record, fmt: TextFormat) -> Pair:
    if not record.plain:
        return encode_pair(
            tokenizer, record.question, record.answer, fmt, fact=record.fact, earlier=record.earlier
        )
    if record.question:
        return _continuation(tokenizer, record.question, record.answer, fmt)
    return encode_chunk(tokenizer, record.answer, fmt)


def encode_chunk(tokenizer: Any, text: str, fmt: TextFormat) -> Pair:
    """A text of which all tokens but the first are predicted; tokens behind ``fmt.max_tokens`` are cut."""
    tokens = encoded(tokenizer, [Part(text=text, quoted=True)])
    kept = tokens[: fmt.max_tokens]
    start = max(sum(token.added for token in kept), 1)
    if len(kept) <= start:
        raise ValueError(f"text {text!r} has no token that another stands before")
    return Pair(
        input_ids=tuple(token.id for token in kept),
        answer_start=start,
        answer_end=len(kept),
        fact_mask=(True,) * (len(kept) - start),
        cut_answer=len(tokens) - len(kept),
        continues_at=max((start + len(kept)) // 2, start),
    )


def _continuation(tokenizer: Any, given: str, text: str, fmt: TextFormat) -> Pair:
    """A text behind a given one, with a space between them where neither has one."""
    apart = given[-1:].isspace() or text[:1].isspace()
    bare = TextFormat(separator="" if apart else " ", max_tokens=_UNBOUNDED, end_id=fmt.end_id)
    whole = encode_pair(tokenizer, given, text, bare)
    opening = sum(token.added for token in encoded(tokenizer, [Part(text=given, quoted=True)]))
    before, behind = whole.prompt, whole.input_ids[whole.answer_start : whole.answer_end]
    half = fmt.max_tokens // 2
    said = behind[: max(half, fmt.max_tokens - len(before))]
    kept = without_beginning(before, opening, fmt.max_tokens - len(said))
    return replace(
        whole,
        input_ids=(*kept, *said),
        answer_start=len(kept),
        answer_end=len(kept) + len(said),
        fact_mask=(True,) * len(said),
        cut_prompt=len(before) - len(kept),
        cut_answer=len(behind) - len(said),
        continues_at=len(kept),
    )


_UNBOUNDED = 2**31


def cut_text(tokenizer: Any, text: str, fmt: TextFormat) -> list[str]:
    """A text in pieces that together are the text, each of at most ``fmt.max_tokens`` tokens by itself.

    There are as few as may be, of about equal length, so that none is a token or two. White space between two
    pieces begins the second. A text of which nothing can be predicted has no pieces.
    """
    tokens = encoded(tokenizer, [Part(text=text, quoted=True)])
    opening = sum(token.added for token in tokens)
    ends = [token.end for token in tokens if not token.added]
    if len(tokens) < 2 or not ends:
        return []
    pieces: list[str] = []
    done = begin = 0
    while done < len(ends):
        left = len(ends) - done
        count = ceil(left / ceil(left / (fmt.max_tokens - opening)))
        while True:
            end = len(text) if count == left else ends[done + count - 1]
            piece = text[begin:end]
            excess = len(encoded(tokenizer, [Part(text=piece, quoted=True)])) - fmt.max_tokens
            if excess <= 0 or count == 1:
                break
            count = max(count - excess, 1)
        pieces.append(piece)
        begin = end
        done = len(ends) if count == left else bisect_right(ends, end)
    return pieces
