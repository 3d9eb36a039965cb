"""From a run's tables to its verdict: forgetting measured against keep, leave and retrain.

Pure bookkeeping over rows; the definitions are in ``fedsim.metrics``. Every number is per variant and
seed, so that statistics over seeds stay with the reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.life import Life, unlearning_spans
from fedsim.metrics.forget_quality import forget_quality
from fedsim.metrics.informative import is_informative, metric_trust
from fedsim.metrics.trajectories import (
    backward_transfer,
    collateral,
    excess,
    exposure,
    forgetting_fraction,
    forgetting_measure,
    gap_standard_error,
    method_effect,
    resurgence,
    time_to_reference,
)
from fedsim.probe import KNOWN_IS_LOWER
from fedsim.results import Row
from fedsim.scenario import ProbesConfig
from fedsim.timeline import retrain_name
from fedsim.unlearning.protocol import MethodConfig, Request

TRACKED = (
    "fact_probability",
    "probability",
    "paraphrase_probability",
    "exact_memorisation",
    "extraction_strength",
    "membership_auc",
    "rouge_l_recall",
)
"""Metrics whose trajectories are kept; in all of them higher means knows more."""

CLASSES = {"keep": "ignored", "leave": "natural", "retrain": "exact"}


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
    replay_from: Mapping[int, int]
    """Request number -> first round that retraining for it has to replay."""

    @classmethod
    def of(
        cls,
        variant: str,
        seed: int,
        tables: Mapping[str, Iterable[Row]],
        replay_from: Mapping[int, int],
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
            variant=variant, seed=seed, series=series, items=items, costs=costs, replay_from=replay_from
        )

    def item_values(self, branch: str, subject: str, metric: str, round_: int) -> NDArray[np.float64]:
        """Values of one metric in order of record id (a record without one is NaN); empty if not measured."""
        found = self.items.get((branch, subject, metric, round_), {})
        return np.array([found[record] for record in sorted(found)], dtype=np.float64)

    def value(self, branch: str, subject: str, metric: str, round_: int) -> float | None:
        """The value after a round; None when it was not measured then, or is not a number."""
        return _number(self.series.get((branch, subject, metric), {}).get(round_))


def trajectories(tables: LifeTables, life: Life, branches: Sequence[str]) -> list[Row]:
    """Excess, forgetting fraction and method effect of every branch, request, metric and round."""
    rows: list[Row] = []
    for request in life.requests:
        subject = f"forget:{request.number}"
        for metric in TRACKED:
            for branch in branches:
                rows.extend(_trajectory(tables, branch, request, subject, metric))
    return rows


def _trajectory(
    tables: LifeTables, branch: str, request: Request, subject: str, metric: str
) -> Iterable[Row]:
    names = (branch, "retrain", "keep", "leave")
    series = [tables.series.get((name, subject, metric), {}) for name in names]
    rounds = sorted(set.intersection(*(set(one) for one in series)))
    rounds = [round_ for round_ in rounds if round_ >= request.round]
    if not rounds:
        return
    unlearned, retrain, keep, leave = (np.array([one[r] for r in rounds]) for one in series)
    gap = [_gap_error(tables, subject, metric, r) for r in rounds]
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


def _gap_error(tables: LifeTables, subject: str, metric: str, round_: int) -> float:
    """Standard error over items of keep minus retrain; infinite where items were not kept."""
    keep = tables.item_values("keep", subject, metric, round_)
    retrain = tables.item_values("retrain", subject, metric, round_)
    if keep.size == 0 or keep.size != retrain.size:
        return math.inf
    return float(gap_standard_error(keep, retrain))


def forget_quality_rows(tables: LifeTables, life: Life, branches: Sequence[str]) -> list[Row]:
    """TOFU's forget quality of every branch against retrain, at each round with items."""
    rows: list[Row] = []
    for request in life.requests:
        subject = f"forget:{request.number}"
        rounds = sorted(
            r for b, s, m, r in tables.items if (b, s, m) == ("retrain", subject, "truth_ratio_raw")
        )
        for branch in branches:
            for round_ in (r for r in rounds if r >= request.round):
                quality = _quality(tables, branch, subject, round_)
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


def _quality(tables: LifeTables, branch: str, subject: str, round_: int) -> dict[str, float] | None:
    mine = tables.item_values(branch, subject, "truth_ratio_raw", round_)
    reference = tables.item_values("retrain", subject, "truth_ratio_raw", round_)
    if np.isfinite(mine).sum() == 0 or np.isfinite(reference).sum() == 0:
        return None
    quality = forget_quality(mine, reference)
    return {"p": quality.p_value, "d": quality.ks_distance, "n": float(quality.n_unlearned)}


def informative_rows(tables: LifeTables, life: Life, config: ProbesConfig) -> list[dict[str, Any]]:
    """Whether the run can say anything about each request, judged at the request's round."""
    rows: list[dict[str, Any]] = []
    for request in life.requests:
        subject = f"forget:{request.number}"
        metric, round_ = config.headline, request.round
        keep = tables.item_values("keep", subject, metric, round_)
        retrain = tables.item_values("retrain", subject, metric, round_)
        holdout = tables.item_values("retrain", "holdout", metric, round_)
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
                    "sentence": f"Cannot be judged: {metric} of {unknown} is missing at round {round_}.",
                }
            )
            continue
        verdict = is_informative(keep, retrain, holdout)
        rows.append(
            {
                **who,
                "informative": verdict.verdict == "informative",
                "reason": verdict.reason,
                "keep": verdict.keep,
                "retrain": verdict.retrain,
                "holdout": verdict.holdout,
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
                    if branch in sides and subject == f"forget:{request.number}" and round_ == request.round:
                        sides[branch].setdefault(metric, []).extend(found.values())
        lower = {("truth_ratio_raw" if name == "truth_ratio" else name) for name in KNOWN_IS_LOWER}
        trust = metric_trust(sides["keep"], sides["retrain"], known_is_lower=lower)
        if "nll" in trust:  # the loss attack tells what its loss tells
            trust["membership_auc"] = trust["nll"]
        rows.extend(
            {"variant": variant, "metric": name.removesuffix("_raw"), "auc": one.auc, "trusted": one.trusted}
            for name, one in sorted(trust.items())
        )
    return rows


def verdict_rows(
    tables: LifeTables,
    life: Life,
    config: ProbesConfig,
    branches: Sequence[str],
    methods: Mapping[str, MethodConfig],
) -> list[dict[str, Any]]:
    """One row per branch and request, measured at the horizon; what was not measured there is None."""
    return [
        _verdict(tables, life, config, branch, request, methods)
        for request in life.requests
        for branch in branches
    ]


def _verdict(
    tables: LifeTables,
    life: Life,
    config: ProbesConfig,
    branch: str,
    request: Request,
    methods: Mapping[str, MethodConfig],
) -> dict[str, Any]:
    subject = f"forget:{request.number}"
    found = list(_trajectory(tables, branch, request, subject, config.headline))
    rounds = [int(row["round"]) for row in found]
    over = [float(row["excess"]) for row in found]
    final = found[-1] if found and rounds[-1] == life.horizon else {}
    row: dict[str, Any] = {
        "variant": tables.variant,
        "seed": tables.seed,
        "branch": branch,
        "request": request.number,
        "class": CLASSES.get(branch) or methods[branch].verdict,
        "round": life.horizon,
        "value": tables.value(branch, subject, config.headline, life.horizon),
        "excess": _number(final.get("excess")),
        "forgetting_fraction": _number(final.get("forgetting_fraction")),
        **_dynamics(rounds, over, life, config, request, methods.get(branch)),
        **_forget_quality(tables, branch, subject, life.horizon),
        **_utility(tables, branch, life.horizon),
        **_collateral(tables, life, config, branch),
        **_retention(tables, life, config, branch, request),
        **_costs(tables, life, branch, request),
    }
    row["finding"] = _finding(row, config)
    return row


def qualify(rows: Sequence[dict[str, Any]], informative: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Verdict rows whose findings say when the run cannot carry them."""
    known = {(one["variant"], one["seed"], one["request"]): one["informative"] for one in informative}
    return [
        row
        if known[row["variant"], row["seed"], row["request"]]
        else {**row, "finding": f"not informative, so not evidence: {row['finding']}"}
        for row in rows
    ]


def _number(value: Any) -> float | None:
    """JSON has no NaN: what is not defined is null."""
    return float(value) if value is not None and math.isfinite(value) else None


def _dynamics(
    rounds: list[int],
    over: list[float],
    life: Life,
    config: ProbesConfig,
    request: Request,
    method: MethodConfig | None,
) -> dict[str, Any]:
    if not rounds or rounds[0] != request.round or rounds[-1] != life.horizon:
        return {"time_to_reference": None, "exposure": None, "resurgence": None}
    reached = time_to_reference(
        rounds, over, request_round=request.round, tolerance=config.tolerance, hold_rounds=config.window
    )
    spans = unlearning_spans(life, method.unlearning_rounds if method is not None else 0)
    since = spans[request.number][1] if method is not None else request.round
    return {
        "time_to_reference": None if reached is None else reached - request.round,
        "exposure": _number(exposure(rounds, over, request_round=request.round, horizon_round=life.horizon)),
        "resurgence": _number(resurgence(rounds, over, since_round=since)) if since in rounds else None,
    }


def _forget_quality(tables: LifeTables, branch: str, subject: str, round_: int) -> dict[str, Any]:
    quality = _quality(tables, branch, subject, round_) or {}
    return {
        "forget_quality_p": quality.get("p"),
        "forget_quality_d": quality.get("d"),
        "forget_quality_n": quality.get("n"),
    }


def _utility(tables: LifeTables, branch: str, round_: int) -> dict[str, Any]:
    mine = tables.value(branch, "model", "model_utility", round_)
    reference = tables.value("retrain", "model", "model_utility", round_)
    difference = mine - reference if mine is not None and reference is not None else None
    return {"utility": mine, "utility_excess": difference}


def _remaining(tables: LifeTables, life: Life, metric: str) -> list[str]:
    """Subjects of the measured clients that nobody asked to forget, in order of id."""
    asked = {f"client:{request.client}" for request in life.requests}
    measured = {s for b, s, m in tables.series if b == "retrain" and m == metric and s.startswith("client:")}
    return sorted(measured - asked, key=lambda name: int(name.split(":")[1]))


def _collateral(tables: LifeTables, life: Life, config: ProbesConfig, branch: str) -> dict[str, Any]:
    """What happened to the clients nobody asked to forget, against retrain, at the horizon."""
    pairs = []
    for subject in _remaining(tables, life, config.headline):
        mine, reference = (
            tables.value(name, subject, config.headline, life.horizon) for name in (branch, "retrain")
        )
        if mine is not None and reference is not None:
            pairs.append((subject, mine, reference))
    if not pairs:
        return {"collateral_mean": None, "collateral_worst": None, "collateral_worst_client": None}
    lost = collateral([mine for _, mine, _ in pairs], [reference for _, _, reference in pairs])
    return {
        "collateral_mean": lost.mean,
        "collateral_worst": lost.worst,
        "collateral_worst_client": int(pairs[lost.worst_client][0].split(":")[1]),
    }


def _retention(
    tables: LifeTables, life: Life, config: ProbesConfig, branch: str, request: Request
) -> dict[str, Any]:
    """What remaining clients lost since the request: backward transfer, and the fall from their best."""
    series = [
        tables.series.get((branch, subject, config.headline), {})
        for subject in _remaining(tables, life, config.headline)
    ]
    rounds = sorted(set.intersection(*(set(one) for one in series))) if series else []
    rounds = [round_ for round_ in rounds if round_ >= request.round]
    scores_TI = np.array([[one[round_] for one in series] for round_ in rounds])
    if len(rounds) < 2 or not np.isfinite(scores_TI).all():
        return {"backward_transfer": None, "forgetting_measure": None}
    first = [0] * len(series)
    return {
        "backward_transfer": backward_transfer(scores_TI, learned_row_I=first),
        "forgetting_measure": forgetting_measure(scores_TI, learned_row_I=first),
    }


def _costs(tables: LifeTables, life: Life, branch: str, request: Request) -> dict[str, Any]:
    """Client steps spent on the request, also as a share of what replaying the life up to it takes."""
    replayed = tables.costs.get(retrain_name(request.number), [])
    first = tables.replay_from[request.number]
    replay = [row for row in replayed if first <= row["round"] <= request.round]
    if branch == "retrain":
        rows = replay
    else:
        own = tables.costs.get(branch, [])
        rows = [row for row in own if row["request"] == request.number]
    steps = sum(int(row["client_steps"]) for row in rows)
    total = sum(int(row["client_steps"]) for row in replay)
    return {
        "client_steps": steps,
        "rounds": len(rows),
        "target_rounds": sum(int(row["targets"]) for row in rows),
        "bytes": sum(int(row["bytes_down"]) + int(row["bytes_up"]) for row in rows),
        "cost_share": steps / total if total else None,
    }


def _finding(row: Mapping[str, Any], config: ProbesConfig) -> str:
    """One sentence on what was seen; never more than what the headline metric can show."""
    over, horizon = row["excess"], row["round"]
    took_part, rounds = row["target_rounds"], row["rounds"]
    absent = f"; the forgetting client took part in {took_part} of {rounds} unlearning rounds"
    note = absent if row["branch"] != "retrain" and took_part < rounds else ""
    name = config.headline.replace("_", " ")
    if over is None:
        return f"{name} was not measured at round {horizon}{note}"
    if row["branch"] == "retrain":
        return "the reference"
    if over > config.tolerance:
        return f"{name} is still {over:.2f} above the reference at round {horizon}{note}"
    if over < -config.tolerance:
        below = "over-forgotten, itself a trace"
        return f"{name} is {-over:.2f} below the reference at round {horizon}: {below}{note}"
    return f"no excess of {name} over the reference detected at round {horizon}{note}"
