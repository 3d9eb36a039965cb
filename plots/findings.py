"""What the data say, as one honest sentence: outcomes of methods, and when nothing may be said.

A method is *at* the reference when its mean excess at the horizon lies within ``margin`` of zero, *above*
it when it knows more than the retrained model, *below* when it knows less (it overshoots, which itself
gives the request away). Nothing is ever called removed: the most that is said is that the audits of this
run do not tell a branch from the retrained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plots import words
from plots.data import RunData
from plots.parts import NAN

Kind = Literal["at", "above", "below", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method over the informative requests: the worst of its outcomes."""

    title: str
    kind: Kind
    excess: float
    """The mean excess furthest from zero."""
    rounds: float
    """Rounds until it reached the reference at the slowest request; NaN if at some it never did."""


def margin(run: RunData, variant: str, request: int) -> float:
    """The run's tolerance, or the spread of the retrained model over seeds where that is wider."""
    band = run.series(variant, "retrain", f"forget:{request}", run.headline)
    if not band or len(run.seeds) < 2:
        return run.tolerance
    return max(run.tolerance, float(band.high[-1] - band.low[-1]) / 2)


def readable(run: RunData, variant: str) -> list[int]:
    """Requests about which this run may say something."""
    return [r.request for r in run.requests if run.informative(variant, r.request)]


def disclaimer(run: RunData, variant: str, metric: str) -> str | None:
    """Why no finding may be stated: an untrusted metric, or a run that cannot show forgetting."""
    if not run.requests:
        return "Nobody asked to be forgotten in this run"
    if not readable(run, variant):
        return f"Not informative: {_reason(run, variant)}, so this run cannot show forgetting"
    if not run.trusted(variant, metric):
        auc = run.trust(variant)[metric][0]
        name = words.capital(words.metric_name(metric))
        return f"{name} cannot tell keep from retrain on this run (AUC {words.number(auc)}): not to be quoted"
    return None


def _reason(run: RunData, variant: str) -> str:
    checks = [c for c in run.verdict["informative"] if c["variant"] == variant and not c["informative"]]
    if not checks:
        return "no check of the references was recorded"
    keep, retrain, holdout = (words.number(_average(checks, name)) for name in ("keep", "retrain", "holdout"))
    reasons = {
        "keep_knows_little": f"keep knows the facts at {keep} only",
        "retrain_knows": f"retrain ({retrain}) knows more than of unseen authors ({holdout})",
        "too_few_items": "too few records to compare retrain with unseen authors",
        "not_measured": "keep, retrain or unseen authors were not measured",
    }
    return reasons[str(checks[0]["reason"])]


def _average(checks: Sequence[dict[str, float | None]], name: str) -> float:
    found = [value for check in checks if (value := check.get(name)) is not None]
    return float(np.mean(found)) if found else NAN


def outcome(run: RunData, variant: str, branch: str, title: str) -> Outcome:
    """The worst outcome of a branch over the requests that can be read."""
    requests = readable(run, variant)
    excesses = {r: run.value(variant, branch, r, "excess") for r in requests}
    known = {r: e for r, e in excesses.items() if np.isfinite(e)}
    if not known:
        return Outcome(title=title, kind="unknown", excess=NAN, rounds=NAN)
    times = [_time(run, variant, branch, r) for r in requests]
    outside = {r: e for r, e in known.items() if abs(e) > margin(run, variant, r)}
    worst = max(outside.values() if outside else known.values(), key=abs)
    kind: Kind = "at"
    if outside:
        kind = "above" if any(e > 0 for e in outside.values()) else "below"
    return Outcome(title=title, kind=kind, excess=worst, rounds=max(times) if all(times) else NAN)


def _time(run: RunData, variant: str, branch: str, request: int) -> float:
    """Slowest seed's rounds to the reference; 0 stands for never (a censored seed)."""
    found = run.values(variant, branch, request, "time_to_reference")
    return max(found) if found and len(found) == len(run.rows(variant, branch, request)) else 0.0


def headline(run: RunData, variant: str) -> str:
    """The run in one sentence: who ends at the retrained reference, who overshoots, who stays above."""
    excuse = disclaimer(run, variant, run.headline)
    if excuse:
        return excuse
    branches = run.methods or tuple(b for b in run.branches if b.name == "leave")
    outcomes = [outcome(run, variant, b.name, words.inside(b.title)) for b in branches]
    groups = {kind: [o for o in outcomes if o.kind == kind] for kind in ("at", "below", "above")}
    clauses = [*_at(groups["at"], len(outcomes)), *_off(groups["below"], groups["above"])]
    if not clauses:
        return "No method of this run has a verdict at the horizon"
    if not groups["at"]:
        lead = "no method ends" if len(outcomes) > 1 else f"{outcomes[0].title} does not end"
        clauses.insert(0, f"{lead} at the retrained reference")
        clauses = [f"{clauses[0]}: {clauses[1]}", *clauses[2:]] if len(outcomes) > 1 else clauses
    left_out = len(run.requests) - len(readable(run, variant))
    note = f"; {words.plural(left_out, 'request')} not informative" if left_out else ""
    return words.capital("; ".join(clauses)) + note


def _at(found: Sequence[Outcome], total: int) -> list[str]:
    if not found:
        return []
    timed = sorted((o for o in found if np.isfinite(o.rounds)), key=lambda o: o.rounds)
    if len(found) > 2:
        first = f" ({timed[0].title} first, within {words.plural(timed[0].rounds, 'round')})" if timed else ""
        return [f"{len(found)} of {total} methods end at the retrained reference{first}"]
    names = words.listing([o.title for o in found])
    if len(timed) == len(found):
        verb = "reaches" if len(found) == 1 else "reach"
        when = words.plural(timed[-1].rounds, "round")
        return [f"{names} {verb} the retrained reference within {when}"]
    return [f"{names} {'ends' if len(found) == 1 else 'end'} at the retrained reference"]


def _off(below: Sequence[Outcome], above: Sequence[Outcome]) -> list[str]:
    clauses = []
    if below:
        names = words.listing([o.title for o in below])
        clauses.append(f"{names} {'overshoots' if len(below) == 1 else 'overshoot'}")
    if above:
        names = words.listing([o.title for o in above])
        verb = "still knows" if len(above) == 1 else "still know"
        clauses.append(f"{names} {verb} more than it")
    return clauses
