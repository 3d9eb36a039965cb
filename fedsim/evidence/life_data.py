"""A life as data, for figures and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.life.schedule import answers
from fedsim.life.script import Life
from fedsim.scenario.scenario import Scenario
from fedsim.scenario.variants import Variant
from fedsim.unlearning.protocol import MethodConfig


def life_json(scenario: Scenario, variants: Sequence[Variant], life: Life) -> dict[str, Any]:
    """The life as figures need it; see ``plots``."""
    return {
        "name": scenario.name,
        "description": scenario.description,
        "horizon": life.horizon,
        "seeds": list(scenario.seeds),
        "headline": scenario.probes.headline,
        "tolerance": scenario.probes.tolerance,
        "variants": [{"name": variant.name, "overrides": dict(variant.overrides)} for variant in variants],
        "events": [
            {
                "round": event.round,
                "kind": event.kind,
                "clients": list(event.clients),
                "client": event.client,
                "request": event.request,
                "text": event.text,
            }
            for event in life.events
        ],
        "requests": [
            {
                "request": request.number,
                "round": request.round,
                "client": request.client,
                "scope": request.scope,
                "records": len(request.record_ids),
                "text": next(e.text for e in life.events if e.request == request.number),
            }
            for request in life.requests
        ],
        "branches": [*_references(), *(_branch(m, life) for m in scenario.compare)],
    }


def _references() -> list[dict[str, Any]]:
    """The branches that every run has."""
    fixed = [("keep", "Keep", "ignored"), ("leave", "Leave", "natural"), ("retrain", "Retrain", "exact")]
    return [
        {"name": name, "method": name, "title": title, "class": kind, "unlearning": []}
        for name, title, kind in fixed
    ]


def _branch(method: MethodConfig, life: Life) -> dict[str, Any]:
    """A method's branch, with the rounds that it takes for each request."""
    return {
        "name": method.branch,
        "method": method.method,
        "title": method.title if method.label is None else f"{method.title} ({method.label})",
        "class": method.promise,
        "unlearning": [
            {"request": answer.request.number, "first": answer.first, "last": answer.last}
            for answer in answers(life, method)
            if answer.first <= answer.last
        ],
    }
