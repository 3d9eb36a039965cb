"""Sums that tell too much: rounds whose cohorts differ by one client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.evidence.promises import Row
from fedsim.life.events.registry import EVENTS
from fedsim.life.steps import Branch, Step
from fedsim.living.context import LifeContext


@dataclass(frozen=True, kw_only=True)
class Differing:
    """Two rounds of one branch whose cohorts are the same but for one client."""

    branch: str
    rounds: tuple[int, int]
    client: int


def differing(branch: Branch, targets: Mapping[int, int], *, apart: int = 1) -> list[Differing]:
    """Pairs of rounds, at most ``apart`` from each other, whose sums differ by one client's update.

    The other clients' updates change from round to round, too, but little while the model does; what the one
    client sent then stands out in the difference.
    """
    cohorts = {step.round: _heard(step, targets) for step in branch.steps}
    found = []
    for earlier in cohorts:
        for later in range(earlier + 1, earlier + apart + 1):
            odd = cohorts[earlier] ^ cohorts.get(later, frozenset())
            if later in cohorts and len(odd) == 1 and len(cohorts[earlier] & cohorts[later]) > 0:
                found.append(Differing(branch=branch.name, rounds=(earlier, later), client=next(iter(odd))))
    return found


def _heard(step: Step, targets: Mapping[int, int]) -> frozenset[int]:
    """Whose updates are in the sum of a round, if nothing fails but by script."""
    asked = frozenset() if step.unlearning is None else frozenset({targets[step.unlearning.request]})
    lost = {
        client
        for client, conditions in step.conditions
        for condition in conditions
        if condition.silent_from() not in (None, "during_unmasking")
    }
    return (frozenset(participant.client for participant in step.cohort) | asked) - lost


def differencing_rows(context: LifeContext) -> list[Row]:
    """Masked sums of neighbouring rounds that give a single client away.

    Noise of clients' own covers the difference; then there is none.
    """
    pipeline = context.engine.runtime.pipeline
    if pipeline.reveals != "sum":
        return []
    targets = {request.number: request.client for request in context.life.requests}
    covered = [f.name for f in pipeline.facts if f.charges == "client" and f.noised_by != "server"]
    moves = {
        (event.round, client)
        for event in context.life.events
        if EVENTS[event.kind].changes_roster
        for client in event.clients
    }
    rows = []
    for branch in context.branches:
        for one in differing(branch, targets):
            rows.append(
                {
                    "variant": context.variant,
                    "seed": context.seed,
                    "branch": one.branch,
                    "rounds": list(one.rounds),
                    "client": one.client,
                    "name": context.holdings.names.name(one.client),
                    "event": (one.rounds[0], one.client) in moves,
                    "covered_by": covered,
                }
            )
    return rows


def differencing_sentences(rows: Sequence[Row]) -> list[str]:
    """A line for each client that comes or goes between two sums, and one on all others together."""
    bare = [row for row in rows if not row["covered_by"]]
    told = []
    for row in bare:
        if row["event"]:
            text = (
                f"Rounds {row['rounds'][0]} and {row['rounds'][1]} of {row['branch']} differ by client "
                f"{row['name']} alone: the difference of their sums is close to its update."
            )
            if text not in told:
                told.append(text)
    rest = len({(row["branch"], *row["rounds"]) for row in bare if not row["event"]})
    if rest:
        pairs = "pair of rounds differs" if rest == 1 else "pairs of rounds differ"
        told.append(f"{rest} more {pairs} by one client by chance of the draw.")
    return told
