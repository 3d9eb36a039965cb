"""What the data say, as one honest sentence: outcomes of methods, and when nothing may be said.

What each method was shown to do was judged once, when the run ended (``verdict.json``: every trusted metric,
from both sides); here it is only put into words. Nothing is ever called removed: the most that is said is
that a branch is within the margins of the retrained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plots import words
from plots.data import RunData
from plots.parts import NAN

Kind = Literal["same", "open", "above", "below", "mixed", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method over the informative requests: the worst of its outcomes."""

    title: str
    kind: Kind
    excess: float
    """The mean excess furthest from zero."""


def margin(run: RunData) -> float:
    """What passes for nothing; fixed before the run, however noisy the reference is."""
    return run.tolerance


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
        "nothing_gained": f"keep ({keep}) knows no more than retrain ({retrain})",
        "holdout_known": f"records that nobody should have seen are known at {holdout}",
        "not_measured": "keep, retrain or unseen authors were not measured",
    }
    return reasons[str(checks[0]["reason"])]


def _average(checks: Sequence[dict[str, float | None]], name: str) -> float:
    found = [value for check in checks if (value := check.get(name)) is not None]
    return float(np.mean(found)) if found else NAN


def outcome(run: RunData, variant: str, branch: str, title: str) -> Outcome:
    """What was shown of a branch over the requests that can be read, and its excess furthest from zero."""
    excesses = [run.value(variant, branch, request, "excess") for request in readable(run, variant)]
    known = [value for value in excesses if np.isfinite(value)]
    kinds = run.summary(variant).get("kinds") or {}
    if not known or branch not in kinds:
        return Outcome(title=title, kind="unknown", excess=NAN)
    return Outcome(title=title, kind=kinds[branch], excess=max(known, key=abs))


def headline(run: RunData, variant: str) -> str:
    """The run in one sentence: what was shown of its methods."""
    excuse = disclaimer(run, variant, run.headline)
    if excuse:
        return excuse
    left_out = len(run.requests) - len(readable(run, variant))
    note = f"; {words.plural(left_out, 'request')} not informative" if left_out else ""
    return str(run.summary(variant).get("title") or "No method of this run has a verdict") + note
