"""The tables of the report as rows of ready-to-print cells: verdict, utility, epsilon, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plots import words
from plots.data import RunData
from plots.parts import Branch, Request


@dataclass(frozen=True)
class Column:
    """The head of a column, with what it means."""

    head: str
    unit: str
    meaning: str


COLUMNS = (
    Column(
        "Branch",
        "class",
        "one way the life could go on, and what it promises: exact, guaranteed, approximate, suppression "
        "only, or nothing; retrain is the reference",
    ),
    Column("Knowledge", "headline", "the headline metric on the forgotten facts, at the horizon"),
    Column(
        "Excess", "over retrain", "knowledge minus the retrained model's; 0 is the target, below overshot"
    ),
    Column(
        "Forgetting",
        "% of the gap",
        "share of the gap between keep and retrain that was closed; above 100 % is over-forgetting",
    ),
    Column(
        "Time",
        "rounds",
        "rounds from the request until the excess first holds near 0; “never” within this run",
    ),
    Column(
        "NLL",
        "nats over retrain",
        "nats a token above retrain's, with its 95 % interval over records",
    ),
    Column(
        "Membership",
        "AUC",
        "of telling forgotten records from unseen ones by their loss; below .5 it is an attack turned round",
    ),
    Column(
        "KS D",
        "p, n",
        "distance of truth ratios from retrain's; p from 20 records on; not proof of equality",
    ),
    Column(
        "Shown",
        "against retrain",
        "what the trusted metrics show, from both sides: 95 % intervals that lie beyond fixed margins",
    ),
    Column("Utility", "change", "model utility at the horizon, and its change against retrain"),
    Column("Worst client", "change", "the remaining client that lost most against retrain"),
    Column("Cost", "% of retrain", "client training steps as a share of retraining's up to the request"),
)


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, with a note below it."""

    text: str
    note: str = ""
    grey: bool = False


@dataclass(frozen=True)
class VerdictRow:
    """A branch in the table of verdicts."""

    branch: str
    kind: str
    colour: str
    reference: bool
    cells: tuple[Cell, ...]


def verdict_rows(run: RunData, variant: str, request: Request) -> list[VerdictRow]:
    """A row for every branch, in the order of the run."""
    rows = []
    for branch in run.branches:
        cells = _cells(run, variant, request.request, branch)
        colour = run.looks[branch.name].colour
        kind = words.CLASSES.get(branch.kind, branch.kind)
        rows.append(VerdictRow(branch.title, kind, colour, run.is_reference(branch.name), cells))
    return rows


def _cells(run: RunData, variant: str, request: int, branch: Branch) -> tuple[Cell, ...]:
    headline = not run.quotable(variant, request, run.headline)
    ratios = not run.quotable(variant, request, "truth_ratio")

    def mean(key: str) -> float:
        return run.value(variant, branch.name, request, key)

    def spread(key: str, digits: int = 2) -> str:
        found = run.values(variant, branch.name, request, key)
        low, high = (words.number(f(found), digits) for f in (min, max)) if len(found) > 1 else ("", "")
        return f"{low} … {high}" if low != high else ""

    fraction, own = mean("forgetting_fraction"), run.is_reference(branch.name) and branch.name != "retrain"
    return (
        Cell(words.number(mean("value")), spread("value"), headline),
        Cell(words.NOTHING)
        if own
        else Cell(words.number(mean("excess"), sign=True), spread("excess"), headline),
        Cell(
            f"{words.number(100 * fraction, 0)} %" if np.isfinite(fraction) and not own else words.NOTHING,
            "",
            headline,
        ),
        _time(run, variant, request, branch, headline),
        _nll(run, variant, request, branch),
        _membership(run, variant, request, branch),
        _distance(run, variant, request, branch, ratios),
        _shown(run, variant, request, branch),
        _utility(mean("utility"), mean("utility_excess")),
        _worst(run, variant, request, branch),
        Cell(words.percent(mean("cost_share"))),
    )


def _utility(value: float, change: float) -> Cell:
    return Cell(words.number(value), words.number(change, sign=True) if np.isfinite(change) else "")


def _nll(run: RunData, variant: str, request: int, branch: Branch) -> Cell:
    """Nats above retrain's; the interval of a single seed, or the extremes of several."""
    found = run.compared(variant, branch.name, request, "nll")
    if not found or run.is_reference(branch.name):
        return Cell(words.NOTHING)
    changes = [-float(one["difference"]) for one in found]
    ends = [(-one["high"], -one["low"]) for one in found if one["low"] is not None]
    low, high = ends[0] if len(found) == 1 and ends else (min(changes), max(changes))
    return Cell(
        words.number(float(np.mean(changes)), sign=True),
        f"{words.number(low, sign=True)} … {words.number(high, sign=True)}",
    )


def _membership(run: RunData, variant: str, request: int, branch: Branch) -> Cell:
    judged = [row.get("judgement") or {} for row in run.rows(variant, branch.name, request)]
    found = [float(one["membership_auc"]) for one in judged if one.get("membership_auc") is not None]
    if not found:
        return Cell(words.NOTHING)
    spread = f"{min(found):.2f} … {max(found):.2f}" if len(found) > 1 else ""
    return Cell(words.number(float(np.mean(found))), spread)


def _distance(run: RunData, variant: str, request: int, branch: Branch, grey: bool) -> Cell:
    """D, with p where there are records enough: the largest of several seeds' p is no test either."""
    found = run.values(variant, branch.name, request, "forget_quality_d")
    if not found or run.is_reference(branch.name):
        return Cell(words.NOTHING)
    n = words.number(run.value(variant, branch.name, request, "forget_quality_n"), 0)
    ps = run.p_values(variant, branch.name, request)
    p = f"p {words.p_value(ps[0])}, " if len(ps) == 1 else ""
    if len(ps) > 1:
        p = f"p ≤ .05 on {sum(one <= 0.05 for one in ps)} of {len(ps)}, "
    return Cell(words.number(float(np.mean(found))), f"{p}n {n}", grey)


KINDS = {
    "above": "knows more",
    "below": "knows less",
    "mixed": "more and less",
    "same": "within margins",
    "open": "nothing",
    "unknown": words.NOTHING,
}


def _shown(run: RunData, variant: str, request: int, branch: Branch) -> Cell:
    """What was shown on each seed; seeds that differ are counted."""
    kinds = [
        (row.get("judgement") or {}).get("kind", "unknown") for row in run.rows(variant, branch.name, request)
    ]
    if not kinds or run.is_reference(branch.name):
        return Cell(words.NOTHING)
    most = max(sorted(set(kinds)), key=kinds.count)
    note = f"{kinds.count(most)} of {len(kinds)} seeds" if len(set(kinds)) > 1 else ""
    return Cell(KINDS[most], note, not run.informative(variant, request))


def _time(run: RunData, variant: str, request: int, branch: Branch, grey: bool) -> Cell:
    rows = run.rows(variant, branch.name, request)
    found = run.values(variant, branch.name, request, "time_to_reference")
    if not rows:
        return Cell(words.NOTHING, "", grey)
    if not found:
        return Cell("never", "", grey)
    part = f"{len(found)} of {len(rows)} seeds" if len(found) < len(rows) else ""
    mean = float(np.mean(found))
    return Cell(words.number(mean, 0 if mean.is_integer() else 1), part, grey)


def _worst(run: RunData, variant: str, request: int, branch: Branch) -> Cell:
    rows = [
        r
        for r in run.rows(variant, branch.name, request)
        if r.get("collateral_worst") is not None and np.isfinite(r["collateral_worst"])
    ]
    if not rows:
        return Cell(words.NOTHING)
    worst = min(rows, key=lambda r: float(r["collateral_worst"]))
    who = worst.get("collateral_worst_client")
    text = words.number(float(worst["collateral_worst"]), sign=True)
    return Cell(text, run.client(who) if who is not None else "", not run.trusted(variant, run.headline))


def utility_rows(run: RunData, variant: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(branches, (component, values) rows) of model utility at the horizon; empty where unmeasured."""
    names = {key[4] for key in run.metrics if key[0] == variant and key[3] == "model"}
    parts = ["model_utility"] if "model_utility" in names else []
    parts += sorted(name for name in names if name.startswith("utility/"))
    rows = [
        (_component(part), [words.number(run.final(variant, b.name, "model", part)) for b in run.branches])
        for part in parts
    ]
    return [branch.title for branch in run.branches], rows


def _component(part: str) -> str:
    """``utility/real_authors/rouge_l_recall`` -> ``Real authors: ROUGE-L recall``."""
    if "/" not in part:
        return words.capital(words.metric_name(part))
    subject, metric = part.removeprefix("utility/").rsplit("/", 1)
    return f"{words.capital(words.subject_name(subject))}: {words.metric_name(metric)}"


def epsilon_rows(run: RunData, variant: str, metric: str) -> list[tuple[str, str, str, str]]:
    """(branch, largest, median, forgotten clients' epsilons) at the horizon; empty without accounting."""
    subjects = run.subjects(variant, metric, "client:")
    rows = []
    for branch in run.branches:
        spent = {s: run.final(variant, branch.name, s, metric) for s in subjects}
        known = [v for v in spent.values() if np.isfinite(v)]
        if known:
            gone = [(r.who, spent.get(f"client:{r.client}")) for r in run.requests]
            asked = ", ".join(f"{c}: {words.number(v)}" for c, v in gone)
            middle = float(np.median(known))
            empty = " (meaningless)" if max(known) > run.meaningless_above else ""
            rows.append((branch.title, words.number(max(known)) + empty, words.number(middle), asked))
    return rows


def view_rows(run: RunData, variant: str) -> list[tuple[str, str, str, str, str]]:
    """(adversary, what it sees, hidden among, epsilon per example, epsilon per client) over a life."""
    rows = []
    for view in run.privacy.get("views", ()):
        if view["variant"] != variant:
            continue
        who = words.capital(str(view["adversary"]))
        if view["colluders"]:
            who = f"Server and {words.plural(view['colluders'], 'colluding client')}"
        many = view["hidden_among"]
        hidden = words.plural(many, "client") if many > 1 else words.NOTHING
        promised = [_guarantee(view[unit]) for unit in ("example", "client")]
        rows.append((who, "; ".join(view["sees"]), hidden, promised[0], promised[1]))
    return rows


def _guarantee(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "no guarantee"
    empty = ", meaningless" if found.get("meaningless") else ""
    return f"ε ≤ {found['epsilon']:.3g} at δ = {found['delta']:g} ({found['by']}){empty}"


def promise_rows(run: RunData, variant: str) -> list[tuple[str, str, str]]:
    """(request, branch, what DP alone promises about it); branches and seeds with one answer share a row."""
    said: dict[tuple[int, str], list[str]] = {}
    titles = {branch.name: branch.title for branch in run.branches}
    for row in run.privacy.get("forgetting", ()):
        if row["variant"] == variant:
            key = (int(row["request"]), str(row["sentence"]))
            said.setdefault(key, []).append(titles.get(row["branch"], row["branch"]))
    return [
        (f"Request {number}", words.listing(list(dict.fromkeys(who)), 9), sentence)
        for (number, sentence), who in sorted(said.items())
    ]


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as (dotted name, text) pairs, in order."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            rows += flat(item, f"{name}.")
        else:
            rows.append((name, _text(item)))
    return rows


def _text(item: Any) -> str:
    if isinstance(item, Sequence) and not isinstance(item, str):
        return ", ".join(str(part) for part in item)
    return words.NOTHING if item is None else str(item)
