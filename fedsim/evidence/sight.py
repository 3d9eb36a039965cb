"""Who sees what of the updates, and which guarantee holds against each adversary."""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.evidence.promises import Row
from fedsim.living.context import LifeContext
from fedsim.living.tasks import life_tasks
from privacy import VACUOUS, Unit, View, views

UNITS: tuple[Unit, ...] = ("example", "client")


def view_rows(context: LifeContext) -> list[Row]:
    """Each adversary: what it sees, how many clients hide an update, which epsilon holds against it."""
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
