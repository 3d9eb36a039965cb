"""Plain texts cut into chunks: each a record that can be trained on as a whole, and forgotten.

How long a chunk may be, the tokenizer decides; so the cut is given. A chunk is called by its text and its
place in it: ``train:7/0``, ``train:7/1``. What it is called depends on the text and on the cut alone.

>>> text = Record(record_id="train:7", subject="news", question="", answer="one two three", plain=True)
>>> corpus = chunked(Corpus(clients={0: (text,)}, holdout=(), public={}), cut=str.split)
>>> [(record.record_id, record.answer) for record in corpus.clients[0]]
[('train:7/0', 'one'), ('train:7/1', 'two'), ('train:7/2', 'three')]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from fedsim.data.overlap import fingerprint
from fedsim.data.records import Corpus, Record

Cut = Callable[[str], Sequence[str]]
"""A text in pieces of which each can be trained on as a whole."""
Key = TypeVar("Key", int, str)


def chunked(corpus: Corpus, cut: Cut) -> Corpus:
    """The corpus with its plain texts in pieces; continuations of a given text stay whole.

    A piece of a held-out text that a client's text has, too, is no yardstick and is left out.

    Raises:
        ValueError: a text is too short to be trained on.
    """

    def pieces(records: Iterable[Record]) -> tuple[Record, ...]:
        return tuple(piece for record in records for piece in _pieces(record, cut))

    def each(groups: Mapping[Key, tuple[Record, ...]]) -> dict[Key, tuple[Record, ...]]:
        return {name: pieces(records) for name, records in groups.items()}

    clients = each(corpus.clients)
    known = {fingerprint(one) for held in clients.values() for one in held if one.plain}
    return replace(
        corpus,
        clients=clients,
        holdout=tuple(
            one for one in pieces(corpus.holdout) if not one.plain or fingerprint(one) not in known
        ),
        public=each(corpus.public),
        asked=each(corpus.asked),
    )


def _pieces(record: Record, cut: Cut) -> list[Record]:
    if not record.plain or record.question:
        return [record]
    found = cut(record.answer)
    if not found:
        raise ValueError(
            f"text {record.record_id} has less than two tokens for this base, so nothing of it can be "
            "predicted; leave it out"
        )
    return [
        replace(record, record_id=f"{record.record_id}/{place}", answer=text)
        for place, text in enumerate(found)
    ]
