"""Texts in parts as tokens, with the characters that each stands for.

The tokenizer encodes a text as a whole; a part that is quoted has no markers, whatever it spells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedsim.model.chat import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token with the characters it stands for; ``added`` if the tokenizer put it before the text itself."""

    id: int
    start: int
    end: int
    added: bool = False


def encoded(
    tokenizer: Any, parts: Sequence[Part], *, templated: bool = False, end: int | None = None
) -> list[Token]:
    """The tokenizer's own encoding of the parts as one text, without markers behind its end.

    Only where a quoted part spells a marker is the text taken apart at the markers that are meant as such.
    Added tokens that are not special count as markers where ``end`` is one, or a part that is not quoted has
    one. A marker that the tokenizer would put in front is left out where the text begins with it, and where
    the text is ``templated``: a chat template writes its own.
    """
    text = "".join(part.text for part in parts)
    markers = [marker for marker in _markers(tokenizer) if marker in text]
    plain = [marker for marker in _plain_markers(tokenizer, parts, end) if marker in text]
    markers += plain
    literal = any(part.quoted and marker in part.text for part in parts for marker in markers)
    meant = any(not part.quoted and marker in part.text for part in parts for marker in markers)
    if literal and (meant or plain):
        tokens = _opening(tokenizer)
        offset = 0
        for piece, is_marker in _pieces(parts, markers, plain):
            tokens += _tokens(tokenizer, piece, offset, split_markers=not is_marker, add_special_tokens=False)
            offset += len(piece)
    else:
        tokens = _tokens(tokenizer, text, 0, split_markers=literal, add_special_tokens=True)
    if literal:
        tokens = _without_markers(tokenizer, tokens, parts)
    opening = [token for token in tokens if token.added]
    written = [token for token in tokens if not token.added]
    if opening and written and meant and written[0].id == opening[-1].id:
        return [*opening, *written[1:]]
    return written if templated else [*opening, *written]


@lru_cache(maxsize=16)
def _markers(tokenizer: Any) -> dict[str, int]:
    """What a tokenizer reads as markers wherever it stands, with the ids."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {text: number for text, number in (*added.items(), *named) if text}


@lru_cache(maxsize=16)
def _added(tokenizer: Any) -> dict[str, int]:
    """Added tokens that are not special: no setting of the tokenizer takes them apart."""
    return {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if not token.special and len(str(token)) > 1
    }


def _plain_markers(tokenizer: Any, parts: Sequence[Part], end: int | None) -> list[str]:
    """Those that mean something here: one ends answers, others stand in what nobody quotes."""
    return [
        marker
        for marker, number in _added(tokenizer).items()
        if number == end or any(not part.quoted and marker in part.text for part in parts)
    ]


def _opening(tokenizer: Any) -> list[Token]:
    """What the tokenizer puts before every text."""
    return [
        token
        for token in _tokens(tokenizer, "a", 0, split_markers=False, add_special_tokens=True)
        if token.added
    ]


def _tokens(
    tokenizer: Any, text: str, offset: int, *, split_markers: bool, add_special_tokens: bool
) -> list[Token]:
    """One call of the tokenizer; markers that it puts behind the text are left out."""
    encoded = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        split_special_tokens=split_markers,
        return_offsets_mapping=True,
    )
    of_text = [index is not None for index in encoded.sequence_ids(0)]
    last = max((index for index, own in enumerate(of_text) if own), default=-1)
    return [
        Token(id=token, start=offset + begin, end=offset + end)
        if own
        else Token(id=token, start=0, end=0, added=True)
        for index, (token, (begin, end), own) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], of_text, strict=True)
        )
        if own or index < last
    ]


def _pieces(
    parts: Sequence[Part], markers: Sequence[str], plain: Sequence[str]
) -> Iterator[tuple[str, bool]]:
    """The text cut at the markers outside quoted parts: each piece, and whether it is a marker.

    A quoted part is cut behind the first character of every one of the ``plain`` markers that it spells.
    """
    meant, spelled = _any_of(markers), _any_of(plain)
    piece = ""
    for part in parts:
        position = 0
        for found in (spelled if part.quoted else meant).finditer(part.text):
            cut = found.start() + 1 if part.quoted else found.start()
            piece += part.text[position:cut]
            if piece:
                yield piece, False
            if not part.quoted:
                yield found.group(), True
            piece, position = "", cut if part.quoted else found.end()
        piece += part.text[position:]
    if piece:
        yield piece, False


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Finds each of some texts, the longest first; nothing where there are none."""
    listed = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) if listed else r"(?!)")


def _without_markers(tokenizer: Any, tokens: Sequence[Token], parts: Sequence[Part]) -> list[Token]:
    """The tokens with what a quoted part still turned into a marker as an unknown token.

    Raises:
        ValueError: the tokenizer has no unknown token.
    """
    quoted: list[tuple[int, int]] = []
    position = 0
    for part in parts:
        if part.quoted:
            quoted.append((position, position + len(part.text)))
        position += len(part.text)
    markers = set(_markers(tokenizer).values()) - {tokenizer.unk_token_id}
    found: list[Token] = []
    for token in tokens:
        inside = any(begin <= token.start and token.end <= end for begin, end in quoted)
        if token.added or token.id not in markers or not inside or token.end <= token.start:
            found.append(token)
        elif tokenizer.unk_token_id is None:
            marker = tokenizer.convert_ids_to_tokens(token.id)
            raise ValueError(
                f"a record spells the marker {marker!r}, which this tokenizer cannot write as text"
            )
        else:
            found.append(Token(id=tokenizer.unk_token_id, start=token.start, end=token.end))
    return found
