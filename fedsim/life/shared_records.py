"""What it means for a request that its records stand elsewhere, too."""

from __future__ import annotations

from collections import Counter

from fedsim.data.overlap import LISTED, Overlap, public_text
from fedsim.life.script import Life


def joining(life: Life) -> tuple[int, ...]:
    """The clients that take part at some time of a life, in order of id."""
    return tuple(
        sorted({client for event in life.events if event.kind == "join" for client in event.clients})
    )


def request_sentences(overlap: Overlap, life: Life) -> list[str]:
    """What the overlap means for each request: who else holds the facts that are to be forgotten."""
    places_of = {
        record: repeat.found
        for repeat in overlap.repeats
        for place, record in repeat.found
        if place.startswith("client:")
    }
    names = overlap.names
    gone: set[str] = set()
    sentences = []
    for request in life.requests:
        gone.update(request.record_ids)
        own = f"client:{request.client}"
        holders: Counter[str] = Counter()
        for record in request.record_ids:
            found = places_of.get(record, ())
            others = {place for place, _ in found} - {own, "holdout"}
            holders.update(
                f"{names.text(int(place.split(':')[1]))}'s"
                if place.startswith("client:")
                else f"in {public_text(place)}"
                for place in sorted(others)
            )
            if any(place == own and other not in gone for place, other in found):
                holders["in records of its own that stay"] += 1
        if holders:
            asker, facts = names.text(request.client), len(request.record_ids)
            listed = holders.most_common(LISTED)
            also = ", ".join(f"{count} {who}" for who, count in listed[1:])
            more = len(holders) - len(listed)
            sentences.append(
                f"{listed[0][1]} of {asker}'s {facts} facts are also {listed[0][0]}"
                f"{f' ({also}' if also else ''}{f', and {more} others hold some' if more else ''}"
                f"{')' if also else ''}: these remain in training without {asker}, so request "
                f"{request.number} cannot show that they are forgotten."
            )
    return sentences
