"""What each branch says to a few questions, word by word: the report's quotations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plots.data import RunData

UNTRAINED = "before training"


@dataclass(frozen=True)
class Said:
    """A row of quotations: who answers, in which colour, what, and whether that is the right answer."""

    who: str
    colour: str
    answers: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Quotations:
    """Questions with their right answers, and what was said to them at ``round``, on one seed."""

    asked: tuple[tuple[str, str], ...]
    rows: tuple[Said, ...]
    round: int
    seed: int


def quotations(run: RunData, variant: str, subject: str) -> Quotations | None:
    """What was said about a subject before training and at the horizon; None if nothing was noted."""
    rows = [row for row in run.answers if row["variant"] == variant and row["subject"] == subject]
    if not rows:
        return None
    seed = min(row["seed"] for row in rows)
    own = [row for row in rows if row["seed"] == seed]
    asked = {row["record"]: (row["question"], row["right"]) for row in own}
    first, last = (edge(row["round"] for row in own) for edge in (min, max))
    said = {(row["branch"], row["round"], row["record"]): row["said"] for row in own}
    speakers = [(UNTRAINED, "keep", first)] if first == 0 < last else []
    speakers += [(branch.title, branch.name, last) for branch in run.branches]
    found = tuple(
        Said(
            who=title,
            colour="" if title == UNTRAINED else run.looks[name].colour,
            answers=tuple(_judged(said[name, at, record], asked[record][1]) for record in asked),
        )
        for title, name, at in speakers
        if all((name, at, record) in said for record in asked)
    )
    return Quotations(asked=tuple(asked.values()), rows=found, round=last, seed=seed) if found else None


def all_quotations(run: RunData, variant: str) -> Mapping[str, Quotations]:
    """Quotations by the title of what they are about: the requests in order, then public knowledge."""
    requests = [(f"Request {r.request}: {r.text}", f"forget:{r.request}") for r in run.requests]
    known = {subject for _, subject in requests}
    others: Sequence[str] = sorted({row["subject"] for row in run.answers} - known)
    named = [*requests, *((f"Public knowledge: {name}", name) for name in others)]
    found = ((title, quotations(run, variant, subject)) for title, subject in named)
    return {title: one for title, one in found if one is not None}


def _judged(said: str, right: str) -> tuple[str, bool]:
    return said or "(nothing)", _bare(said) == _bare(right)


def _bare(text: str) -> str:
    """A text by its words alone."""
    return " ".join(re.findall(r"\w+", text.casefold()))
