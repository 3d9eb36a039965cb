"""A life unrolled: branches of steps, each with all that decides its round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedsim.life.events.protocol import Condition


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A client in a round, with the ids of its records that it no longer uses."""

    client: int
    without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UnlearningStep:
    """Marks a round as unlearning round ``index`` (0-based) of a method for a request."""

    branch: str
    request: int
    index: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """All that decides one round of one branch.

    ``nominal_size`` is how many clients would be there had nobody been forgotten: a public number,
    the same in all branches. ``conditions`` says what is different about those who are asked.
    """

    round: int
    cohort: tuple[Participant, ...]
    nominal_size: int
    unlearning: UnlearningStep | None = None
    conditions: tuple[tuple[int, tuple[Condition, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A way the life could go on. It is measured from round ``observed_from`` on; before, it only replays.

    ``rosters`` says for each step who was there to be drawn. A branch of a ``part`` is one clients' share of
    an ensemble (see ``Composed``) and is not measured by itself.
    """

    name: str
    steps: tuple[Step, ...]
    observed_from: int = 0
    rosters: tuple[tuple[int, ...], ...] = ()
    part: bool = False


def retrain_name(prefix: int) -> str:
    """The branch without the clients of requests 1..prefix."""
    return f"retrain#{prefix}"


def part_of(branch: str) -> str | None:
    """The part of an ensemble that a branch is a life of.

    >>> part_of("sisa/0/retrain#2"), part_of("npo")
    ('sisa/0', None)
    """
    return branch.rpartition("/")[0] or None


@dataclass(frozen=True)
class Line:
    """The lives without a method of all clients, or of one part of an ensemble, whose names have a prefix.

    >>> Line("sisa/0/").retrain(2), Line("sisa/0/").retrain(0), Line().keep
    ('sisa/0/retrain#2', 'sisa/0/keep', 'keep')
    """

    prefix: str = ""

    @property
    def keep(self) -> str:
        """The life in which no request is answered."""
        return f"{self.prefix}keep"

    @property
    def leave(self) -> str:
        """The life in which clients go without being forgotten."""
        return f"{self.prefix}leave"

    def retrain(self, granted: int) -> str:
        """The life without the clients of requests 1 to ``granted``; with 0 that is ``keep``."""
        return f"{self.prefix}{retrain_name(granted)}" if granted else self.keep


@dataclass(frozen=True, kw_only=True)
class References:
    """The branches that a branch is measured against: nothing forgotten, left, and never there."""

    keep: str = "keep"
    leave: str = "leave"
    retrain: str = "retrain"


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A branch without rounds of its own: an ensemble of one life of each of its ``lines``.

    ``retrain`` is spliced: a part that held what a request forgets is replayed without it.
    """

    name: str
    method: str
    lines: tuple[Line, ...]
    life: Literal["keep", "leave", "retrain"]

    def at(self, granted: int) -> tuple[str, ...]:
        """The branch of each part once so many requests have been granted."""
        if self.life == "retrain":
            return tuple(line.retrain(granted) for line in self.lines)
        return tuple(line.keep if self.life == "keep" else line.leave for line in self.lines)


def composed(method: str, lines: Iterable[Line]) -> tuple[Composed, ...]:
    """A method's ensemble: as it lives, which is its own retraining, and its own keep and leave."""
    own = own_references(method)
    parts = tuple(lines)
    return (
        Composed(name=own.retrain, method=method, lines=parts, life="retrain"),
        Composed(name=own.keep, method=method, lines=parts, life="keep"),
        Composed(name=own.leave, method=method, lines=parts, life="leave"),
    )


def own_references(method: str) -> References:
    """The references of a method that trains otherwise than the others; no label has a colon."""
    return References(keep=f"{method}:keep", leave=f"{method}:leave", retrain=method)
