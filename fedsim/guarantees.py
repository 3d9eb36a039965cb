"""What privacy says about forgetting: who sees what, what DP alone promises to a request, which sums tell too
much.

A model that is (epsilon, delta)-DP for a unit is, without any unlearning, (epsilon, delta)-close to the one
that never saw that unit. A request for more than one unit, or after other requests, gets the guarantee of the
whole group, quoted at the delta of one, which is soon worth nothing; then that is what is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.client import local_task
from fedsim.federation import Federation
from fedsim.orders import WorkOrder
from fedsim.simulation import LifeContext
from fedsim.timeline import Branch, Step
from fedsim.unlearning.protocol import Request
from privacy import VACUOUS, Facts, Ledger, LocalTask, Neighbours, Unit, View, group_epsilon, views

Row = dict[str, Any]
UNITS: tuple[Unit, ...] = ("example", "client")


# --------------------------------------------------------------------------------- who sees what


def life_tasks(context: LifeContext) -> list[LocalTask]:
    """One local training of each client, as the accountant sees it."""
    planned = context.engine.planner.planned_steps
    records = context.engine.runtime.records
    return [life_task(context, client) for client, held in records.items() if held and planned.get(client)]


def life_task(context: LifeContext, client: int) -> LocalTask:
    """A local training of ``client`` outside all rounds, with the steps that its whole life has planned."""
    planner = context.engine.planner
    order = WorkOrder(
        round=0,
        seed=0,
        branch="",
        version=0,
        local=planner.local,
        planned_steps=planner.planned_steps.get(client, 0),
    )
    return local_task(client, order, nominal_records=len(context.engine.runtime.records[client]))


def view_rows(context: LifeContext) -> list[Row]:
    """Each adversary: what it sees, among how many clients an update is hidden, which epsilon holds against
    it."""
    found = views(context.engine.runtime.pipeline, life_tasks(context))
    units = units_of(context)
    return [{"variant": context.variant, **_view_row(view, units)} for view in found]


def _view_row(view: View, units: Mapping[Unit, int]) -> Row:
    row: Row = {
        "adversary": view.adversary,
        "colluders": view.colluders,
        "sees": list(view.sees),
        "hidden_among": view.hidden_among,
    }
    for unit in UNITS:
        best = view.guarantee(unit)
        row[unit] = (
            None
            if best is None
            else {
                "epsilon": best.epsilon,
                "delta": best.delta,
                "by": best.by,
                "meaningless": best.epsilon > VACUOUS or best.delta * units[unit] >= 1,
            }
        )
    return row


def view_sentences(context: LifeContext) -> list[str]:
    """The same in words, a sentence for each adversary that sees more than the one before."""
    pipeline = context.engine.runtime.pipeline
    if not pipeline.stages:
        return ["No privacy stage: the server sees every client's update."]
    told: list[str] = []
    before: View | None = None
    for view in views(pipeline, life_tasks(context)):
        if before is None or view.sees != before.sees:
            told.append(_in_words(view, before, units_of(context)))
        before = view
    return told


def units_of(context: LifeContext) -> dict[Unit, int]:
    """How many examples, and how many clients that hold any, the federation protects."""
    held = [len(records) for records in context.engine.runtime.records.values() if records]
    return {"example": sum(held), "client": len(held)}


def _in_words(view: View, before: View | None, units: Mapping[Unit, int]) -> str:
    who: str = view.adversary
    if view.colluders:
        who = f"server and {view.colluders} colluding client{'s' if view.colluders > 1 else ''}"
    sees = ", ".join(view.sees)
    if before is not None and view.sees[: len(before.sees)] == before.sees:
        sees = f"all that, and {', '.join(view.sees[len(before.sees) :])}"
    hidden = f"; an update hides among {view.hidden_among} or more" if view.hidden_among > 1 else ""
    promises = []
    for unit in UNITS:
        best = view.guarantee(unit)
        if best is not None:
            empty = ", which is meaningless" if best.epsilon > VACUOUS else ""
            if best.delta * units[unit] >= 1:
                empty = (
                    f", which is meaningless: δ is not below 1/{units[unit]}, "
                    f"so publishing one {unit} of the {units[unit]} whole would keep it"
                )
            promises.append(f"ε ≤ {best.epsilon:.3g} per {unit} at δ = {best.delta:g} ({best.by}){empty}")
    guarantee = " and ".join(promises) or "no differential privacy"
    return f"{who.capitalize()}: sees {sees}{hidden}; {guarantee}."


# ------------------------------------------------------------------ what DP promises to a request


def forgetting_rows(context: LifeContext, branch: str, federation: Federation) -> Iterator[Row]:
    """For each request and protected unit, the guarantee that the branch's ledger alone implies at its
    end."""
    pipeline = context.engine.runtime.pipeline
    for fact in pipeline.facts:
        if fact.charges is None or fact.delta is None:
            continue
        for request in context.life.requests:
            row = _promise(context, fact, request, federation)
            yield {"variant": context.variant, "seed": context.seed, "branch": branch, **row}


def _promise(context: LifeContext, fact: Facts, request: Request, federation: Federation) -> Row:
    assert fact.charges is not None
    assert fact.delta is not None
    unit, delta = fact.charges, fact.delta
    before = [r for r in context.life.requests if r.number <= request.number]
    names = [str(r.client) for r in before]
    spent = max(
        federation.ledger.epsilon(name, unit=unit, delta=delta, accountant=fact.accountant) for name in names
    )
    size = len(set(names)) if unit == "client" else sum(len(r.record_ids) for r in before)
    made = [federation.ledger.composition(name, unit=unit) for name in names]
    together = group_epsilon(made, size=size, delta=delta, accountant=fact.accountant)
    relation = relation_of(federation.ledger, names, unit)
    numbers = {"epsilon": together, "delta": delta}
    return {
        "request": request.number,
        "unit": unit,
        "by": fact.name,
        "size": size,
        "epsilon_of_one": spent,
        "vacuous": together > VACUOUS,
        "epsilon": together if math.isfinite(together) else None,
        "delta": delta,
        "neighbours": relation,
        "sentence": promise_in_words(unit=unit, size=size, spent=spent, neighbours=relation, **numbers),
    }


def relation_of(ledger: Ledger, clients: Sequence[str], unit: Unit) -> Neighbours:
    """What the releases about these clients compare their data with."""
    found = {m.neighbours for client in clients for m, _ in ledger.composition(client, unit=unit)}
    return next(iter(found), "add_remove")


def promise_in_words(
    *,
    unit: Unit,
    size: int,
    spent: float,
    epsilon: float,
    delta: float,
    neighbours: Neighbours = "add_remove",
) -> str:
    """One sentence on the guarantee of a group of units at ``delta``, of which one has spent ``spent``; above
    `VACUOUS` nats it is none."""
    units = f"{size} {unit}{'s' if size != 1 else ''}"
    if spent == 0:
        return f"nothing about the {units} was ever released, so there is nothing to forget"
    if epsilon > VACUOUS:
        verdict = " excludes next to nothing" if size == 1 else f", which says nothing of {units} together"
        return f"vacuous: ε = {spent:.3g} for one {unit}{verdict}"
    near = f"({epsilon:.3g}, {delta:.2g})"
    if neighbours == "replace_one":
        return f"{near}-close to a life with other data in place of {units}; none about a life without"
    if neighbours == "zero_out":
        return f"{near}-close to a life in which {units} took part and sent nothing, from DP alone"
    return f"{near}-unlearning of {units} together, from DP alone"


# ------------------------------------------------------------------------- sums that tell too much


@dataclass(frozen=True, kw_only=True)
class Differing:
    """Two rounds of one branch whose cohorts are the same but for one client."""

    branch: str
    rounds: tuple[int, int]
    client: int


def differing(branch: Branch, targets: Mapping[int, int], *, apart: int = 1) -> list[Differing]:
    """Pairs of rounds, at most ``apart`` from each other, whose sums differ by one client's update.

    The other clients' updates change from round to round, too, but little while the model does; what the one
    client sent then stands out in the difference."""
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
    lost = {client for client, stage in step.drops if stage != "during_unmasking"}
    return (frozenset(participant.client for participant in step.cohort) | asked) - lost


def differencing_rows(context: LifeContext) -> list[Row]:
    """Where masked sums of neighbouring rounds give a single client away, unless noise of clients' own covers
    it."""
    pipeline = context.engine.runtime.pipeline
    if pipeline.reveals != "sum":
        return []
    targets = {request.number: request.client for request in context.life.requests}
    covered = [f.name for f in pipeline.facts if f.charges == "client" and f.noised_by != "server"]
    moves = {
        (event.round, client)
        for event in context.life.events
        if event.kind in ("leave", "forget", "join", "rejoin")
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


# ------------------------------------------------------------------------------- spent budgets


def exhausted_rows(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """From the log of a run: the first round that each client sat out because its budget was spent."""
    first: dict[tuple[str, int, str, int], int] = {}
    names: dict[tuple[str, int], str] = {}
    for event in events:
        if event["kind"] == "budget_spent":
            names[event["variant"], event["client"]] = event["name"]
            key = (event["variant"], event["seed"], event["branch"], event["client"])
            first[key] = min(first.get(key, event["round"]), event["round"])
    return [
        {
            "variant": variant,
            "seed": seed,
            "branch": branch,
            "client": client,
            "name": names[variant, client],
            "round": round_,
        }
        for (variant, seed, branch, client), round_ in sorted(first.items())
    ]


def exhausted_sentences(rows: Sequence[Row]) -> list[str]:
    """A line for each branch in which clients ran out of budget."""
    by_branch: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_branch.setdefault((row["variant"], row["branch"]), []).append(row)
    told = []
    for (variant, branch), found in by_branch.items():
        clients = sorted({row["name"] for row in found})
        who = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients)} clients"
        since = min(row["round"] for row in found)
        told.append(
            f"{variant}, {branch}: {who} had spent the budget, the first in round {since}, and sat out."
        )
    return told
