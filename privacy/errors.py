"""Typed errors of the privacy layer, all ``ValueError`` or ``RuntimeError`` for callers that are coarse.

What the caller can do about it decides the class: fix the configuration (`PipelineError`), leave one
client out (`ClientUpdateError`, `BudgetExceededError`), or run the round again (`RoundAborted`).

>>> issubclass(MalformedMessage, RoundAborted)
True
"""

from __future__ import annotations

from collections.abc import Sequence


class PipelineError(ValueError):
    """The stages do not fit together, or what they were told makes a wrong sum possible."""


class OverflowRiskError(PipelineError):
    """The largest cohort could leave the range of the integers in which updates are added."""


class ClientUpdateError(ValueError):
    """One client's update or weight cannot be used; the client fails, the round does not."""


class BudgetExceededError(ValueError):
    """A local training would cost more than the client has left; it sits this round out."""


class LedgerError(ValueError):
    """A release or a stored ledger is not well formed."""


class ViewError(ValueError):
    """A method needs more than the pipeline lets an honest server see."""


class RoundAborted(RuntimeError):  # noqa: N818 (an outcome of the protocol, not a mistake)
    """No sum came out of this round.

    But for a `SumUnusable`, nothing was released or charged by the server; try a new attempt.
    """


class SumUnusable(RoundAborted):
    """The sum over ``contributors`` was read and cannot be used.

    Or those who know enough could read it by now: it counts as released, and no other may follow, from
    which it would differ by a few clients.
    """

    def __init__(self, message: str, contributors: Sequence[str]) -> None:
        super().__init__(message)
        self.contributors = tuple(contributors)


class CohortTooSmall(RoundAborted):
    """Fewer contributors than ``min_cohort``: the sum would reveal too much."""


class MalformedMessage(RoundAborted):
    """A protocol message has a wrong length, sender, round or roster. No sum was formed."""
