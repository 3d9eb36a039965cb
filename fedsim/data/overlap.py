"""Records that stand in more than one place: between clients, in public data, in the holdout.

A fact that another client holds, too, is not forgotten when one client's is; a held-out record that
somebody trains on is no yardstick. Records are compared by the normalised text of question and answer.

>>> fingerprint(Record(record_id="a:1", subject="a", question="Capital  of France?", answer="Paris."))
('capital of france', 'paris')
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedsim.data.names import ClientNames
from fedsim.data.records import Corpus, Record

Fingerprint = tuple[str, ...]
Place = str
"""``client:N``, ``holdout``, or the name of a public file."""

LISTED = 3
"""How many groups of places, and how many records of each, a sentence names."""


def fingerprint(record: Record) -> Fingerprint:
    """Its texts without regard to case, Unicode form, spaces, and punctuation at their ends."""
    earlier = [text for turn in record.earlier for text in (turn.role, turn.text)]
    return tuple(map(_normalised, (record.question, record.answer, *earlier)))


def _normalised(text: str) -> str:
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    words = " ".join(text.lower().split())
    start, end = 0, len(words)
    while start < end and _is_edge(words[start]):
        start += 1
    while end > start and _is_edge(words[end - 1]):
        end -= 1
    return words[start:end] or words


def _is_edge(character: str) -> bool:
    return character == " " or unicodedata.category(character).startswith("P")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat:
    """One question and answer that stands more than once: each place with its record's id, at least two."""

    found: tuple[tuple[Place, str], ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """The different places, in order."""
        return tuple(dict.fromkeys(place for place, _ in self.found))

    @property
    def clients(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.startswith("client:"))

    @property
    def public(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place not in self.clients and place != "holdout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What a corpus says more than once, in order of first appearance."""

    repeats: tuple[Repeat, ...]
    names: ClientNames

    @property
    def holdout(self) -> tuple[Repeat, ...]:
        """Held-out records that clients train on."""
        return self._which(lambda r: "holdout" in r.places and bool(r.clients))

    @property
    def known_holdout(self) -> tuple[Repeat, ...]:
        """Held-out records that are public."""
        return self._which(lambda r: "holdout" in r.places and bool(r.public))

    @property
    def clients(self) -> tuple[Repeat, ...]:
        """Records of two clients or more."""
        return self._which(lambda r: len(r.clients) > 1)

    @property
    def public(self) -> tuple[Repeat, ...]:
        """Clients' records that are public."""
        return self._which(lambda r: bool(r.clients) and bool(r.public))

    @property
    def within(self) -> tuple[Repeat, ...]:
        """Records that one place holds twice or more."""
        return self._which(lambda r: len(r.places) < len(r.found))

    def _which(self, wanted: Callable[[Repeat], bool]) -> tuple[Repeat, ...]:
        return tuple(repeat for repeat in self.repeats if wanted(repeat))


def find_overlap(corpus: Corpus, joined: Iterable[int]) -> Overlap:
    """What stands more than once in the data of the clients that join, public data and holdout together."""
    at: dict[Fingerprint, list[tuple[Place, str]]] = {}
    places = [(f"client:{client}", corpus.clients[client]) for client in joined]
    for place, records in [*places, *corpus.public.items(), ("holdout", corpus.holdout)]:
        for record in records:
            at.setdefault(fingerprint(record), []).append((place, record.record_id))
    repeats = tuple(Repeat(found=tuple(found)) for found in at.values() if len(found) > 1)
    return Overlap(repeats=repeats, names=corpus.names)


def holdout_error(overlap: Overlap) -> str | None:
    """Why the holdout is none, with counts and lines; None when nobody who joins holds a record of it."""
    found = overlap.holdout
    if not found:
        return None
    count = sum(place == "holdout" for repeat in found for place, _ in repeat.found)
    stand = "record of the holdout also stands" if count == 1 else "records of the holdout also stand"
    return (
        f"{count} {stand} in the data of clients that join: {_listed(found, overlap.names)}; what somebody "
        "trains on cannot show what nobody knew. Take them out of one of the two"
    )


def overlap_sentences(overlap: Overlap) -> list[str]:
    """What stands where more than once, with counts and lines; nothing where all records differ."""
    told = (
        (overlap.within, "stands twice in one place, and counts twice in training and in means"),
        (overlap.clients, "is held by two clients or more"),
        (overlap.public, "of clients is public, too, so the base may know it beforehand"),
        (overlap.known_holdout, "of the holdout is public, so the base may know what nobody should"),
    )
    return [
        f"{_records(len(found))} {what if len(found) == 1 else _plural(what)}: "
        f"{_listed(found, overlap.names)}."
        for found, what in told
        if found
    ]


def public_text(name: str) -> str:
    """A public set in a sentence; one may be called public itself."""
    return "public data" if name == "public" else f"public {name}"


def _listed(repeats: Iterable[Repeat], names: ClientNames) -> str:
    """Which places share how many records, and the first of these by id."""
    groups: dict[tuple[Place, ...], list[Repeat]] = {}
    for repeat in repeats:
        groups.setdefault(repeat.places, []).append(repeat)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    parts = []
    for places, shared in ranked[:LISTED]:
        called = [_called(place, names) for place in places]
        who = " and ".join(called) if len(called) <= LISTED else f"{called[0]} and {len(called) - 1} others"
        lines = ", ".join(" = ".join(record for _, record in r.found[:LISTED]) for r in shared[:LISTED])
        more = f" and {len(shared) - LISTED} more" if len(shared) > LISTED else ""
        parts.append(f"{len(shared)} in {who} ({lines}{more})")
    rest = sum(len(shared) for _, shared in ranked[LISTED:])
    return "; ".join([*parts, *([f"{rest} elsewhere"] if rest else [])])


def _called(place: Place, names: ClientNames) -> str:
    if place == "holdout":
        return place
    return names.text(int(place.split(":")[1])) if place.startswith("client:") else public_text(place)


def _records(count: int) -> str:
    return f"{count} record" + ("" if count == 1 else "s")


def _plural(what: str) -> str:
    verb = {"stands": "stand", "is": "are", "counts": "count", "it": "them"}
    return " ".join(verb.get(word, word) for word in what.split(" "))
