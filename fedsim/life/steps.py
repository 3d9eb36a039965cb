"""A life unrolled: branches of steps, each with all that decides its round."""

from __future__ import annotations

from dataclasses import dataclass

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

    ``rosters`` says for each step who was there to be drawn.
    """

    name: str
    steps: tuple[Step, ...]
    observed_from: int = 0
    rosters: tuple[tuple[int, ...], ...] = ()


def retrain_name(prefix: int) -> str:
    """The branch without the clients of requests 1..prefix."""
    return f"retrain#{prefix}"
