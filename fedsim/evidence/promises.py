"""What differential privacy alone promises to a request to be forgotten.

A model that is (epsilon, delta)-DP for a unit is, without any unlearning, (epsilon, delta)-close to the one
that never saw that unit. A request for more than one unit, or after other requests, gets the guarantee of the
whole group, quoted at the delta of one, which is soon worth nothing; then that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fedsim.living.context import LifeContext
from fedsim.unlearning.request import Request
from privacy import VACUOUS, Facts, Ledger, Neighbours, Unit, group_epsilon

Row = dict[str, Any]


def forgetting_rows(context: LifeContext, branch: str, ledger: Ledger) -> Iterator[Row]:
    """The guarantee that the branch's ledger alone implies at its end, by request and protected unit."""
    pipeline = context.engine.runtime.pipeline
    for fact in pipeline.facts:
        if fact.charges is None or fact.delta is None:
            continue
        for request in context.life.requests:
            row = _promise(context, fact, request, ledger)
            yield {"variant": context.variant, "seed": context.seed, "branch": branch, **row}


def _promise(context: LifeContext, fact: Facts, request: Request, ledger: Ledger) -> Row:
    assert fact.charges is not None
    assert fact.delta is not None
    unit, delta = fact.charges, fact.delta
    before = [r for r in context.life.requests if r.number <= request.number]
    names = [str(r.client) for r in before]
    spent = max(ledger.epsilon(name, unit=unit, delta=delta, accountant=fact.accountant) for name in names)
    size = len(set(names)) if unit == "client" else sum(len(r.record_ids) for r in before)
    made = [ledger.composition(name, unit=unit) for name in names]
    together = group_epsilon(made, size=size, delta=delta, accountant=fact.accountant)
    relation = relation_of(ledger, names, unit)
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
    """One sentence on the guarantee of a group of units at ``delta``.

    One unit has spent ``spent``; above `VACUOUS` nats it is no guarantee.
    """
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
