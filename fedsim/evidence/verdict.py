"""The verdict of a run: one row per branch and request, measured at its end.

The end is the horizon, or the last round before the client came back with its data.

Each row says what was seen and what it cost, as far as it was measured; what is not defined is null.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.evidence.judgements import finding, judgement, quality_note
from fedsim.evidence.tables import LifeTables, number, quality_at, trajectory
from fedsim.federation.worst_cases import planned_rounds
from fedsim.life.schedule import answers, judged_round
from fedsim.life.script import Life
from fedsim.life.steps import Line
from fedsim.measuring.config import ProbesConfig
from fedsim.metrics.trajectories import (
    backward_transfer,
    collateral,
    exposure,
    forgetting_measure,
    resurgence,
    time_to_reference,
)
from fedsim.storage.tables import Row
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.request import Request

CLASSES = {"keep": "ignored", "leave": "natural", "retrain": "exact"}


def verdict_rows(
    tables: LifeTables,
    life: Life,
    config: ProbesConfig,
    branches: Sequence[str],
    methods: Mapping[str, MethodConfig],
    untrusted: Collection[str] = (),
) -> list[dict[str, Any]]:
    """One row per branch and request; what was not measured at the end is None.

    ``untrusted`` names metrics that cannot tell keep from retrain: they have no say in the judgement.
    """
    return [
        _verdict(tables, life, config, branch, request, methods, untrusted)
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
    untrusted: Collection[str],
) -> dict[str, Any]:
    subject, end = request.subject, judged_round(life, request)
    whole = trajectory(tables, branch, request, subject, config.headline)
    found = [row for row in whole if row["round"] <= end]
    rounds = [int(row["round"]) for row in found]
    over = [float(row["excess"]) for row in found]
    final = found[-1] if found and rounds[-1] == end else {}
    row: dict[str, Any] = {
        "variant": tables.variant,
        "seed": tables.seed,
        "branch": branch,
        "request": request.number,
        "class": CLASSES.get(branch) or methods[branch].promise,
        "reference": tables.references(branch).retrain,
        "round": end,
        "value": tables.value(branch, subject, config.headline, end),
        "excess": number(final.get("excess")),
        "forgetting_fraction": number(final.get("forgetting_fraction")),
        **_dynamics(rounds, over, life, config, request, methods.get(branch), end),
        **_forget_quality(tables, branch, subject, end),
        **_utility(tables, branch, end),
        **_collateral(tables, life, config, branch, end),
        "collateral_null": _collateral(tables, life, config, "keep", end)["collateral_worst"],
        "judgement": judgement(tables, config, branch, request, end, untrusted),
        **_retention(tables, life, config, branch, request),
        **_costs(tables, life, branch, request),
        "target_asked": _asked(methods.get(branch), life, request),
    }
    row |= quality_note(row)
    row["finding"] = finding(row, config, life.names)
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


def _dynamics(
    rounds: list[int],
    over: list[float],
    life: Life,
    config: ProbesConfig,
    request: Request,
    method: MethodConfig | None,
    end: int,
) -> dict[str, Any]:
    if not rounds or rounds[0] != request.round or rounds[-1] != end:
        return {"time_to_reference": None, "exposure": None, "resurgence": None}
    reached = time_to_reference(
        rounds, over, request_round=request.round, tolerance=config.tolerance, hold_rounds=config.window
    )
    since = answers(life, method)[request.number - 1].last if method is not None else request.round
    return {
        "time_to_reference": None if reached is None else reached - request.round,
        "exposure": number(exposure(rounds, over, request_round=request.round, horizon_round=end)),
        "resurgence": number(resurgence(rounds, over, since_round=since)) if since in rounds else None,
    }


def _forget_quality(tables: LifeTables, branch: str, subject: str, round_: int) -> dict[str, Any]:
    quality = quality_at(tables, branch, subject, round_) or {}
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


def _collateral(
    tables: LifeTables, life: Life, config: ProbesConfig, branch: str, end: int
) -> dict[str, Any]:
    """What happened to the clients nobody asked to forget, against retrain, after round ``end``."""
    pairs = []
    for subject in _remaining(tables, life, config.headline):
        mine, reference = (tables.value(name, subject, config.headline, end) for name in (branch, "retrain"))
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
    """Client steps spent on the request, also as a share of what replaying the life up to it takes.

    None where clients do not tell their steps, as in a deployment.
    """
    if tables.references(branch).retrain == branch:
        rows = [row for line in tables.lines(branch) for row in _replay(tables, line, request)]
    else:
        rows = [row for row in tables.costs.get(branch, []) if row["request"] == request.number]
    steps, total = _client_steps(rows), _client_steps(_replay(tables, Line(), request))
    return {
        "client_steps": steps,
        "rounds": len(rows),
        "target_rounds": sum(int(row["targets"]) for row in rows),
        "bytes": sum(int(row["bytes_down"]) + int(row["bytes_up"]) for row in rows),
        "cost_share": steps / total if total and steps is not None else None,
    }


def _asked(method: MethodConfig | None, life: Life, request: Request) -> int:
    """The unlearning rounds in which a method asks the forgetting client."""
    if method is None:
        return 0
    planned = planned_rounds(method, life)
    return sum(plan.target is not None for asked, _, plan in planned if asked.number == request.number)


def _replay(tables: LifeTables, line: Line, request: Request) -> list[Row]:
    """The rounds up to a request that retraining a line of lives for it replays."""
    first = tables.replay_from[line][request.number]
    rows = tables.costs.get(line.retrain(request.number), [])
    return [row for row in rows if first <= row["round"] <= request.round]


def _client_steps(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps of all clients in some rounds; None when a round's were not measured."""
    steps = [row["client_steps"] for row in rows]
    return None if None in steps else sum(steps)
