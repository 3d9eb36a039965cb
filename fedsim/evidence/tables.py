"""Forgetting in a run's tables, measured against keep, leave and retrain.

Pure bookkeeping over rows; the definitions are in ``fedsim.metrics``. Every number is per variant and
seed, so that statistics over seeds stay with the reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.life.script import Life
from fedsim.life.steps import Line, References, own_references
from fedsim.measuring.config import ProbesConfig
from fedsim.metrics.forget_quality import forget_quality
from fedsim.metrics.informative import is_informative, metric_trust
from fedsim.metrics.registry import KNOWN_IS_LOWER, TRACKED
from fedsim.metrics.trajectories import (
    excess,
    forgetting_fraction,
    gap_standard_error,
    method_effect,
)
from fedsim.storage.tables import Row
from fedsim.unlearning.request import Request


@dataclass(frozen=True, kw_only=True)
class LifeTables:
    """The rows of one variant and seed, indexed."""

    variant: str
    seed: int
    series: Mapping[tuple[str, str, str], Mapping[int, float]]
    """(branch, subject, metric) -> round -> value."""
    items: Mapping[tuple[str, str, str, int], Mapping[str, float]]
    """(branch, subject, metric, round) -> record -> value."""
    costs: Mapping[str, Sequence[Row]]
    replay_from: Mapping[Line, Mapping[int, int]]
    """Line of lives -> request number -> first round that retraining for it has to replay."""
    ensembles: Mapping[str, tuple[Line, ...]] = field(default_factory=dict)
    """Branches that are measured against references of their own -> the lines of their parts."""

    @classmethod
    def of(
        cls,
        variant: str,
        seed: int,
        tables: Mapping[str, Iterable[Row]],
        replay_from: Mapping[Line, Mapping[int, int]],
        ensembles: Mapping[str, tuple[Line, ...]] | None = None,
    ) -> LifeTables:
        series: dict[tuple[str, str, str], dict[int, float]] = {}
        items: dict[tuple[str, str, str, int], dict[str, float]] = {}
        costs: dict[str, list[Row]] = {}

        def own(table: str) -> Iterable[Row]:
            return (row for row in tables[table] if row["variant"] == variant and row["seed"] == seed)

        for row in own("metrics"):
            key = (row["branch"], row["subject"], row["metric"])
            series.setdefault(key, {})[row["round"]] = row["value"]
        for row in own("items"):
            at = (row["branch"], row["subject"], row["metric"], row["round"])
            items.setdefault(at, {})[row["record"]] = row["value"]
        for row in own("costs"):
            costs.setdefault(row["branch"], []).append(row)
        return cls(
            variant=variant,
            seed=seed,
            series=series,
            items=items,
            costs=costs,
            replay_from=replay_from,
            ensembles=ensembles or {},
        )

    def references(self, branch: str) -> References:
        """What forgetting in a branch is measured against; utility is measured against the common ones."""
        return own_references(branch) if branch in self.ensembles else References()

    def lines(self, branch: str) -> tuple[Line, ...]:
        """The lines of lives that a branch is made of."""
        return self.ensembles.get(branch, (Line(),))

    def item_values(self, branch: str, subject: str, metric: str, round_: int) -> NDArray[np.float64]:
        """Values of one metric in order of record id (a record without one is NaN); empty if not measured."""
        found = self.items.get((branch, subject, metric, round_), {})
        return np.array([found[record] for record in sorted(found)], dtype=np.float64)

    def value(self, branch: str, subject: str, metric: str, round_: int) -> float | None:
        """The value after a round; None when it was not measured then, or is not a number."""
        return number(self.series.get((branch, subject, metric), {}).get(round_))


def trajectories(tables: LifeTables, life: Life, branches: Sequence[str]) -> list[Row]:
    """Excess, forgetting fraction and method effect of every branch, request, metric and round."""
    rows: list[Row] = []
    for request in life.requests:
        subject = request.subject
        for metric in TRACKED:
            for branch in branches:
                rows.extend(trajectory(tables, branch, request, subject, metric))
    return rows


def trajectory(tables: LifeTables, branch: str, request: Request, subject: str, metric: str) -> Iterable[Row]:
    """One metric of a branch after a request, against its references: a row a round."""
    against = tables.references(branch)
    names = (branch, against.retrain, against.keep, against.leave)
    series = [tables.series.get((name, subject, metric), {}) for name in names]
    rounds = sorted(set.intersection(*(set(one) for one in series)))
    rounds = [round_ for round_ in rounds if round_ >= request.round]
    if not rounds:
        return
    unlearned, retrain, keep, leave = (np.array([one[r] for r in rounds]) for one in series)
    gap = [_gap_error(tables, against, subject, metric, r) for r in rounds]
    fraction = forgetting_fraction(unlearned, keep, retrain, gap_error_R=gap)
    columns = zip(rounds, excess(unlearned, retrain), fraction, method_effect(leave, unlearned), strict=True)
    for round_, over, share, effect in columns:
        yield {
            "variant": tables.variant,
            "branch": branch,
            "seed": tables.seed,
            "round": round_,
            "request": request.number,
            "metric": metric,
            "excess": float(over),
            "forgetting_fraction": float(share),
            "method_effect": float(effect),
        }


def _gap_error(tables: LifeTables, against: References, subject: str, metric: str, round_: int) -> float:
    """Standard error over items of keep minus retrain; infinite where items were not kept."""
    keep = tables.item_values(against.keep, subject, metric, round_)
    retrain = tables.item_values(against.retrain, subject, metric, round_)
    if keep.size == 0 or keep.size != retrain.size:
        return math.inf
    return float(gap_standard_error(keep, retrain))


def forget_quality_rows(tables: LifeTables, life: Life, branches: Sequence[str]) -> list[Row]:
    """TOFU's forget quality of every branch against retrain, at each round with items."""
    rows: list[Row] = []
    for request in life.requests:
        subject = request.subject
        rounds = sorted(
            r for b, s, m, r in tables.items if (b, s, m) == ("retrain", subject, "truth_ratio_raw")
        )
        for branch in branches:
            for round_ in (r for r in rounds if r >= request.round):
                quality = quality_at(tables, branch, subject, round_)
                if quality is not None:
                    rows.append(
                        {
                            "variant": tables.variant,
                            "branch": branch,
                            "seed": tables.seed,
                            "round": round_,
                            "event": life.label(round_),
                            "subject": subject,
                            "metric": "forget_quality_p",
                            "value": quality["p"],
                        }
                    )
    return rows


def quality_at(tables: LifeTables, branch: str, subject: str, round_: int) -> dict[str, float] | None:
    """The KS test of truth ratios against retrain after a round; None where one of them is missing."""
    mine, reference = (
        tables.item_values(name, subject, "truth_ratio_raw", round_)
        for name in (branch, tables.references(branch).retrain)
    )
    if np.isfinite(mine).sum() == 0 or np.isfinite(reference).sum() == 0:
        return None
    quality = forget_quality(mine, reference)
    return {"p": quality.p_value, "d": quality.ks_distance, "n": float(quality.n_unlearned)}


def informative_rows(tables: LifeTables, life: Life, config: ProbesConfig) -> list[dict[str, Any]]:
    """Whether the run can say anything about each request, judged at the request's round."""
    rows: list[dict[str, Any]] = []
    for request in life.requests:
        subject = request.subject
        metric, round_ = config.headline, request.round
        keep = tables.item_values("keep", subject, metric, round_)
        retrain = tables.item_values("retrain", subject, metric, round_)
        holdout = tables.item_values("retrain", "holdout", metric, round_)
        untouched = tables.item_values("keep", "holdout", metric, 0)
        who = {"variant": tables.variant, "seed": tables.seed, "request": request.number}
        unknown = _unknown(keep=keep, retrain=retrain, holdout=holdout)
        if unknown:
            rows.append(
                {
                    **who,
                    "informative": False,
                    "reason": "not_measured",
                    "keep": _mean(keep),
                    "retrain": _mean(retrain),
                    "holdout": _mean(holdout),
                    "n": int(np.isfinite(retrain).sum()),
                    "items_needed": None,
                    "round": round_,
                    "sentence": f"Cannot be judged: {metric} of {unknown} is missing at round {round_}.",
                }
            )
            continue
        verdict = is_informative(keep, retrain, holdout, untouched if untouched.size else None)
        rows.append(
            {
                **who,
                "informative": verdict.verdict == "informative",
                "reason": verdict.reason,
                "keep": verdict.references.keep,
                "retrain": verdict.references.retrain,
                "holdout": verdict.references.holdout,
                "n": verdict.references.n_retrain,
                "items_needed": verdict.references.items_needed,
                "round": round_,
                "sentence": verdict.explanation,
            }
        )
    return rows


def _unknown(**sides: NDArray[np.float64]) -> str:
    """The sides without a single value, by name."""
    return " and ".join(name for name, values in sides.items() if not np.isfinite(values).any())


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def trust_rows(lives: Sequence[tuple[LifeTables, Life]]) -> list[dict[str, Any]]:
    """How well each metric tells keep from retrain, over all requests and seeds of each variant."""
    rows: list[dict[str, Any]] = []
    for variant in dict.fromkeys(tables.variant for tables, _ in lives):
        sides: dict[str, dict[str, list[float]]] = {"keep": {}, "retrain": {}}
        for tables, life in lives:
            if tables.variant != variant:
                continue
            for request in life.requests:
                for (branch, subject, metric, round_), found in tables.items.items():
                    if branch in sides and subject == request.subject and round_ == request.round:
                        sides[branch].setdefault(metric, []).extend(found.values())
        lower = {("truth_ratio_raw" if name == "truth_ratio" else name) for name in KNOWN_IS_LOWER}
        trust = metric_trust(sides["keep"], sides["retrain"], known_is_lower=lower)
        if "nll" in trust:  # membership_auc is computed from nll and inherits its trust
            trust["membership_auc"] = trust["nll"]
        rows.extend(
            {"variant": variant, "metric": name.removesuffix("_raw"), "auc": one.auc, "trusted": one.trusted}
            for name, one in sorted(trust.items())
        )
    return rows


def number(value: Any) -> float | None:
    """JSON has no NaN: what is not defined is null."""
    return float(value) if value is not None and math.isfinite(value) else None
