"""A made-up finished run with realistic shapes: figures and report are tested without training.

What each branch ends with is set by ``Fate``; curves, records and the verdict follow from it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.evidence.judgements import summaries
from fedsim.metrics.judgement import FEW, Comparison, judge
from fedsim.storage.directory import RunDirectory

HORIZON = 36
REQUESTS = ((1, 15, 3), (2, 24, 11))
"""(request, round, client)"""
METRICS = ("fact_probability", "truth_ratio", "extraction_strength", "rouge_l_recall")
Row = dict[str, Any]


@dataclass(frozen=True)
class Fate:
    """Where a branch ends: excess over retrain, rounds until it is there, utility lost, cost share."""

    excess: float
    time: int | None = None
    damage: float = 0.0
    cost: float | None = None
    title: str = ""
    method: str = ""
    kind: str = "approximate"
    regained: float = 0.0
    """What relearning adds to the excess."""


FATES: Mapping[str, Fate] = {
    "keep": Fate(0.80, title="Keep", kind="ignored"),
    "leave": Fate(0.55, title="Leave", kind="natural", cost=0.0),
    "retrain": Fate(0.0, 0, title="Retrain", kind="exact", cost=1.0),
    "grad_ascent": Fate(-0.11, None, 0.25, 0.04, "Gradient ascent"),
    "grad_diff": Fate(0.22, None, 0.06, 0.09, "Gradient difference"),
    "npo": Fate(0.02, 4, 0.01, 0.12, "NPO"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    seeds: Sequence[int] = (1,)
    fates: Mapping[str, Fate] = field(default_factory=lambda: dict(FATES))
    informative: bool = True
    trusted: bool = True
    epsilon: float = 0.0
    """Scale of the budget spent; 0 for no accounting at all."""
    audited: float | None = None
    """Share of the claimed epsilon that canaries prove; None for no audits at all."""
    taught: float = 1.0
    """How much of what relearning can teach it does teach."""
    swept: Sequence[float] = ()
    """One value of a budget for each variant."""
    client_metrics: bool = True
    items: bool = True
    variants: Sequence[str] = ("base",)
    clients: int = 24
    records: int = 24
    """Records of each request, on which forget quality is tested."""
    name: str = "quickstart"
    description: str = "Two of 24 clients ask to be forgotten; one joins late."


def build(path: Path, plan: Plan | None = None) -> Path:
    """Write the run directory of ``plan`` and return it."""
    plan = plan or Plan()
    run = RunDirectory(path)
    run.write_json("life", life(plan))
    run.write_json("verdict", verdict(plan))
    run.write_json("provenance", PROVENANCE | {"seeds": list(plan.seeds)})
    run.write_json("ledger", {"entries": []})
    run.write_json("privacy", privacy(plan))
    if plan.audited is not None:
        run.write_json("audits", audits(plan))
    run.file("scenario.yaml").write_text(f"name: quickstart  # <resolved>\nseeds: {list(plan.seeds)}\n")
    run.write_rows("metrics", metrics(plan))
    run.write_rows("items", items(plan) if plan.items else [])
    for table in ("trajectories", "costs", "timings"):
        run.write_rows(table, [])
    return path


PROVENANCE: Row = {
    "fedsim": "0.1.0",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "python": "3.11.9",
    "platform": "Linux x86_64",
    "cpu": "a laptop",
    "packages": {"torch": "2.13.0", "flwr": "1.42.0"},
    "resolved": {"devices": ["cpu"], "threads": 2, "cohort": {"base": {"clients": 64, "tokens": 2048}}},
    "created": "2026-01-01T00:00:00+00:00",
    "wall_seconds": 201.2,
}


def life(plan: Plan) -> Row:
    def event(at: int, kind: str, clients: Sequence[int], client: int | None, text: str) -> Row:
        request = next((r for r, when, _ in REQUESTS if kind == "forget" and when == at), None)
        return {
            "round": at,
            "kind": kind,
            "clients": list(clients),
            "client": client,
            "request": request,
            "text": text,
        }

    late = plan.clients - 4
    events = [
        event(0, "join", range(late), None, f"clients 0-{late - 1} join"),
        event(10, "join", range(late, plan.clients), None, f"clients {late}-{plan.clients - 1} join"),
        *(event(t, "forget", [c], c, f"client {c} asks to be forgotten") for _, t, c in REQUESTS),
        event(25, "leave", [7], 7, "client 7 leaves"),
    ]
    requests = [
        {"request": r, "round": t, "client": c, "scope": "client", "records": 8, "text": f"client {c}"}
        for r, t, c in REQUESTS
    ]
    branches = [
        {
            "name": name,
            "method": fate.method or name,
            "title": fate.title or name,
            "class": fate.kind,
            "unlearning": [{"request": r, "first": t + 1, "last": t + 5} for r, t, _ in REQUESTS]
            if fate.kind == "approximate"
            else [],
        }
        for name, fate in plan.fates.items()
    ]
    return {
        "name": plan.name,
        "description": plan.description,
        "horizon": HORIZON,
        "seeds": list(plan.seeds),
        "headline": "fact_probability",
        "tolerance": 0.05,
        "variants": [
            {"name": v, "overrides": {"privacy.0.target_epsilon": plan.swept[i]} if plan.swept else {}}
            for i, v in enumerate(plan.variants)
        ],
        "events": events,
        "requests": requests,
        "branches": branches,
    }


def privacy(plan: Plan) -> Row:
    """Two views, and what DP promises to each request, if a budget is spent at all."""
    if not plan.epsilon:
        bare = {"sees": ["each client's updates"], "hidden_among": 1, "colluders": 0}
        views = [
            {"variant": v, "adversary": "honest server", "example": None, "client": None, **bare}
            for v in plan.variants
        ]
        return {"views": views, "forgetting": [], "differencing": [], "exhausted": [], "sentences": []}
    promise = {"epsilon": 8.0, "delta": 1e-5, "by": "example_dp"}
    views = [
        {
            "variant": variant,
            "adversary": adversary,
            "sees": ["the sum of updates", "who took part"],
            "hidden_among": hidden,
            "colluders": colluders,
            "example": promise,
            "client": None,
        }
        for variant in plan.variants
        for adversary, hidden, colluders in (("honest server", 5, 0), ("server and colluders", 3, 2))
    ]
    forgetting = [
        {
            "variant": v,
            "seed": s,
            "branch": b,
            "request": r,
            "unit": "example",
            "sentence": f"vacuous for request {r}",
        }
        for v in plan.variants
        for s in plan.seeds
        for b in ("keep", "npo")
        for r, _, _ in REQUESTS
    ]
    sentences = ["Rounds 4 and 5 of keep differ by client 7 alone."]
    return {
        "meaningless_above": 50.0,
        "views": views,
        "forgetting": forgetting,
        "differencing": [],
        "exhausted": [],
        "sentences": sentences,
    }


def audits(plan: Plan) -> Row:
    """A game against one claim, and an attack on two pipelines."""
    assert plan.audited is not None
    canaries, inversion = [], []
    for variant in plan.variants:
        claimed = plan.swept[list(plan.variants).index(variant)] if plan.swept else 4.0
        for seed in plan.seeds:
            who = {"variant": variant, "seed": seed}
            canaries.append(
                {
                    **who,
                    "game": "canary records",
                    "stage": "example_dp",
                    "sensitivity": None,
                    "canaries": 20_000,
                    "confidence": 0.99,
                    "claimed_epsilon": claimed,
                    "audited_epsilon": plan.audited * claimed,
                    "certifiable_epsilon": 40.0,
                    "broken": plan.audited > 1,
                }
            )
            inversion += [
                {
                    **who,
                    "pipeline": name,
                    "client": c,
                    "cohort": 1,
                    "rouge_l": read,
                    "token_recall": found,
                    "told": read,
                }
                for name, read, found in (("this run", 0.9, 0.95), ("example DP", 0.0, 0.02))
                for c in (0, 1)
            ]
    return {"canaries": canaries, "gradient_inversion": inversion, "relearning": relearning(plan)}


def relearning(plan: Plan) -> list[Row]:
    """Each branch ends with its fate's excess, to which relearning adds."""
    return [
        {
            "variant": variant,
            "seed": seed,
            "audit": "relearning",
            "request": request,
            "branch": branch,
            "view": view,
            "epochs": epochs,
            "part": part,
            "metric": "fact_probability",
            "value": _relearned(plan, branch, seed, epochs, part) if view == "bare" else 0.0,
            "n": 9 if part == "held back" else 8,
        }
        for variant in plan.variants
        for seed in plan.seeds
        for request, _, _ in REQUESTS
        for branch in plan.fates
        for view in ("bare", *(["guarded"] if plan.fates[branch].kind == "suppression" else []))
        for epochs in (0, 1, 4)
        for part in ("relearned", "held back")
    ]


def _relearned(plan: Plan, branch: str, seed: int, epochs: int, part: str) -> float:
    fate = plan.fates[branch]
    start = reference(seed) + fate.excess
    if part == "relearned":
        return min(start + 0.2 * epochs * plan.taught, 0.99)
    return min(start + 0.01 * epochs + fate.regained * epochs / 4 * (1 + 0.1 * seed), 0.99)


def reference(seed: int) -> float:
    """What the retrained model scores on the forgotten facts."""
    return 0.14 + 0.01 * (seed % 3)


def excess_at(plan: Plan, branch: str, at: int, asked: int) -> float:
    """Excess over retrain ``at`` rounds; NaN before the request."""
    fate = plan.fates[branch]
    scale = 1.0 if plan.informative else 0.02
    if branch == "retrain":
        return 0.0
    if branch == "keep":
        return scale * fate.excess
    tau = {"leave": 8.0}.get(branch, (fate.time or 4) / 4)
    return scale * (fate.excess + (0.8 - fate.excess) * math.exp(-(at - asked) / tau))


def knowledge(plan: Plan, branch: str, seed: int, at: int, asked: int) -> float:
    learned = 0.1 + 0.8 * (1 - math.exp(-at / 6)) if plan.informative else 0.12 + 0.001 * at
    if at <= asked:
        return learned
    gap = excess_at(plan, branch, at, asked)
    value = reference(seed) + gap + 0.01 * math.sin(at + len(branch) + seed)
    return min(max(value, 0.0), 0.99)


def metrics(plan: Plan) -> list[Row]:
    rows: list[Row] = []
    for variant in plan.variants:
        for branch in plan.fates:
            for seed in plan.seeds:
                for at in range(HORIZON + 1):
                    who = {"variant": variant, "branch": branch, "seed": seed, "round": at}
                    event = next((f"forget:{r}" for r, t, _ in REQUESTS if t == at), "")
                    rows += [
                        {**who, "event": event, "subject": s, "metric": m, "value": v}
                        for s, m, v in _points(plan, branch, seed, at)
                    ]
    return rows


def _points(plan: Plan, branch: str, seed: int, at: int) -> list[tuple[str, str, float | None]]:
    fate, first = plan.fates[branch], REQUESTS[0][1]
    hurt = fate.damage * (1 - math.exp(-max(at - first, 0) / 3))
    learned = 0.1 + 0.8 * (1 - math.exp(-at / 6)) - hurt
    found: list[tuple[str, str, float | None]] = [
        ("retain", "fact_probability", learned),
        ("holdout", "fact_probability", 0.12 + 0.01 * math.sin(at)),
        ("public", "fact_probability", 0.5 - hurt / 2),
        ("model", "model_utility", 0.62 - hurt / 2),
        ("model", "utility/retain/probability", 0.7 - hurt),
        ("model", "utility/public/rouge_l_recall", 0.4 - hurt / 2),
        ("model", "update_norm", math.nan if at == 0 else 1.0 / (1 + at)),
    ]
    for request, asked, _ in REQUESTS:
        found.append((f"forget:{request}", "fact_probability", knowledge(plan, branch, seed, at, asked)))
        if at >= asked and (at - asked) % 3 == 0:
            gap = abs(excess_at(plan, branch, at, asked))
            found.append((f"forget:{request}", "forget_quality_p", 10 ** (-14 * gap)))
    for client in range(plan.clients):
        if plan.client_metrics:
            found.append((f"client:{client}", "fact_probability", _client(plan, branch, seed, at, client)))
        if plan.epsilon and at:
            gone = next((t for _, t, c in REQUESTS if c == client), HORIZON)
            spent = 0.2 * plan.epsilon * min(at, gone) ** 0.5 * (1 + client / 30)
            found.append((f"client:{client}", "epsilon", spent + (0.3 if branch == "npo" else 0.0)))
            found.append((f"client:{client}", "client_epsilon", 9 * spent))
    return found


def _client(plan: Plan, branch: str, seed: int, at: int, client: int) -> float | None:
    asked = next((t for _, t, c in REQUESTS if c == client), None)
    if asked is not None:
        return knowledge(plan, branch, seed, at, asked)
    if client == 20 and branch == "leave":
        return None
    hurt = plan.fates[branch].damage * (0.4 + 0.6 * math.sin(client) ** 2) if at > 15 else 0.0
    return 0.85 - hurt + 0.01 * math.sin(client + seed)


def items(plan: Plan) -> list[Row]:
    rows = []
    for variant in plan.variants:
        for b, branch in enumerate(plan.fates):
            for seed in plan.seeds:
                for request, asked, _ in REQUESTS:
                    draw = np.random.default_rng([seed, request])
                    shift = -3.0 * excess_at(plan, branch, HORIZON, asked)
                    values = np.exp(draw.normal(0.1 + shift, 0.5, 16) + 0.02 * b)
                    rows += [
                        {
                            "variant": variant,
                            "branch": branch,
                            "seed": seed,
                            "round": HORIZON,
                            "event": "",
                            "subject": f"forget:{request}",
                            "record": f"r{i}",
                            "metric": "truth_ratio_raw",
                            "value": float(value),
                        }
                        for i, value in enumerate(values)
                    ]
    return rows


def verdict(plan: Plan) -> Row:
    informative = [
        {
            "variant": v,
            "seed": seed,
            "request": r,
            "informative": plan.informative,
            "reason": "" if plan.informative else "keep_knows_little",
            "keep": reference(seed) + excess_at(plan, "keep", HORIZON, t),
            "retrain": reference(seed),
            "holdout": 0.12,
            "n": 16,
            "items_needed": 12,
            "round": t,
            "sentence": "keep knows the client's facts, retrain knows them no better than unseen authors"
            if plan.informative
            else "keep does not know the client's facts",
        }
        for v in plan.variants
        for seed in plan.seeds
        for r, t, _ in REQUESTS
    ]
    trust = [
        {"variant": v, "metric": m, "auc": auc, "trusted": auc >= 0.8}
        for v in plan.variants
        for m, auc in zip(METRICS, (0.96 if plan.trusted else 0.61, 0.93, 0.88, 0.64), strict=True)
    ]
    rows = [
        _verdict(plan, v, seed, branch, r, t)
        for v in plan.variants
        for seed in plan.seeds
        for branch in plan.fates
        for r, t, _ in REQUESTS
    ]
    titles = {name: fate.title or name for name, fate in plan.fates.items()}
    summary = summaries(rows, informative, titles, {"base": ["Training costs public knowledge."]})
    return {"informative": informative, "trust": trust, "rows": rows, "summary": summary}


def judged(excess: float, auc: float) -> Row:
    """What a branch's excess shows, by narrow intervals."""
    found = [
        Comparison(metric=m, difference=d, low=d - 0.01, high=d + 0.01, margin=margin, n=16)
        for m, d, margin in (("fact_probability", excess, 0.05), ("nll", 4 * excess, 0.2))
    ]
    told = judge(found)
    return {
        "kind": told.kind,
        "more": [one.metric for one in told.more],
        "less": [one.metric for one in told.less],
        "comparisons": [{**dataclasses.asdict(one), "direction": one.direction} for one in found],
        "membership_auc": auc,
        "membership_reference": 0.5,
    }


def _verdict(plan: Plan, variant: str, seed: int, branch: str, request: int, asked: int) -> Row:
    fate = plan.fates[branch]
    value = knowledge(plan, branch, seed, HORIZON, asked)
    excess = value - knowledge(plan, "retrain", seed, HORIZON, asked)
    approximate = fate.kind == "approximate"
    return {
        "variant": variant,
        "seed": seed,
        "branch": branch,
        "request": request,
        "class": fate.kind,
        "reference": "retrain",
        "round": HORIZON,
        "value": value,
        "excess": excess,
        "forgetting_fraction": 1 - excess / 0.8 if plan.informative else None,
        "time_to_reference": fate.time,
        "exposure": max(excess, 0.0) * 6,
        "resurgence": 0.0,
        "forget_quality_p": 10 ** (-14 * abs(excess)),
        "forget_quality_d": min(1.0, 0.1 + abs(excess)),
        "forget_quality_n": plan.records,
        "forget_quality_visible": 0.4,
        "forget_quality_shown": plan.records >= FEW,
        "judgement": judged(excess, 0.5 + excess / 2),
        "utility": 0.62 - fate.damage / 2,
        "utility_excess": -fate.damage / 2,
        "collateral_mean": -fate.damage / 2 if approximate else None,
        "collateral_worst": -fate.damage if approximate else None,
        "collateral_worst_client": 7 if approximate else None,
        "cost_share": fate.cost,
        "client_steps": 40,
        "rounds": 5 if approximate else 0,
        "bytes": 123456,
        "finding": f"{branch} ends {excess:+.2f} from the retrained model",
    }
