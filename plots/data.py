"""A finished run as frozen, ready-to-draw structure.

``RunData.load(path)`` reads a run directory once; everything after that is look-up. Values that are
missing are NaN, never zero; a series or sample that was not measured is empty.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.storage.directory import RunDirectory
from plots import style, words
from plots.parts import NAN, Branch, Event, Floats, Request, Series, mean_series, one_series, span

Key = tuple[str, str, int, str, str]
"""(variant, branch, seed, subject, metric)"""
REFERENCES = ("keep", "leave", "retrain")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run; ``variant`` is the first argument of every look-up, seeds are averaged unless named."""

    path: Path
    life: Mapping[str, Any]
    data: Mapping[str, Any]
    scenario: Mapping[str, Any]
    verdict: Mapping[str, Any]
    provenance: Mapping[str, Any]
    privacy: Mapping[str, Any]
    audits: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    """What happened, in order of time."""
    releases: int
    """Entries in the ledger."""
    metrics: Mapping[Key, Series]
    records: Mapping[Key, Mapping[int, Floats]]
    answers: Sequence[Mapping[str, Any]] = ()
    """What was said word by word (``answers.parquet``)."""

    @classmethod
    def load(cls, path: Path) -> RunData:
        """Read a run directory; ValueError when the run has not finished."""
        run = RunDirectory(path)
        for name in ("life", "verdict"):
            if not run.file(f"{name}.json").exists():
                raise ValueError(
                    f"run_dir={str(path)!r} has no {name}.json: "
                    + ("the run has not finished; resume it, then draw" if path.is_dir() else "no such run")
                )
        return cls(
            path=path,
            life=run.json("life"),
            data=_optional(run, "data"),
            scenario=_optional(run, "scenario"),
            verdict=run.json("verdict"),
            provenance=_optional(run, "provenance"),
            privacy=_optional(run, "privacy"),
            audits=_optional(run, "audits"),
            log=run.events(),
            releases=_releases(run),
            metrics=_series(run.table("metrics").to_pylist()),
            records=_samples(run.table("items").to_pylist()),
            answers=run.table("answers").to_pylist() if run.file("answers.parquet").exists() else (),
        )

    @property
    def name(self) -> str:
        return str(self.life["name"])

    @property
    def horizon(self) -> int:
        return int(self.life["horizon"])

    @property
    def headline(self) -> str:
        return str(self.life["headline"])

    @property
    def tolerance(self) -> float:
        """Excess within which a branch counts as being at the reference, in the headline metric's unit."""
        return float(self.life["tolerance"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.life["seeds"])

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(variant["name"] for variant in self.life["variants"])

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        names = ("request", "round", "client", "scope", "records", "text")
        return tuple(
            Request(**{name: r.get(name) for name in names}, who=self.client(r.get("client")))
            for r in self.life["requests"]
        )

    @cached_property
    def _names(self) -> Mapping[int, str]:
        """What the data call the clients; empty where they are numbers only."""
        lives: Sequence[Mapping[str, Any]] = self.data.get("lives") or [{"clients": []}]
        return {each["client"]: each["name"] for each in lives[0]["clients"]}

    def called(self, client: int) -> str:
        """A client's name, cut to what a figure has room for."""
        return words.short(self._names.get(client, str(client)), 20)

    def client(self, client: int | None) -> str:
        """``client clinic-a``, ``client 3``, or ``a client`` where none is known."""
        return "a client" if client is None else f"client {self.called(client)}"

    @cached_property
    def events(self) -> tuple[Event, ...]:
        return tuple(
            Event(
                round=e["round"],
                kind=e["kind"],
                clients=tuple(e.get("clients") or ()),
                client=e.get("client"),
                who=self._who(tuple(e.get("clients") or ())),
                text=e.get("text") or "",
            )
            for e in self.life["events"]
        )

    def _who(self, clients: tuple[int, ...]) -> str:
        """``20–23``, ``3``, ``clinic-a``, or ``5 clients``."""
        if len(clients) == 1 or all(self.called(client) == str(client) for client in clients):
            return self.called(clients[0]) if len(clients) == 1 else span(clients)
        return f"{len(clients)} clients"

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        raw = self.life["branches"]
        titles = [b.get("title") or words.METHODS.get(b["method"], b["name"]) for b in raw]
        return tuple(
            Branch(
                name=b["name"],
                method=b["method"],
                title=_distinct(b["name"], b["method"], title, titles),
                kind=b["class"],
                unlearning=tuple((u["request"], u["first"], u["last"]) for u in b.get("unlearning") or ()),
            )
            for b, title in zip(raw, titles, strict=True)
        )

    @property
    def methods(self) -> tuple[Branch, ...]:
        """The branches that try to forget: all but keep, leave and retrain."""
        return tuple(branch for branch in self.branches if branch.name not in REFERENCES)

    @property
    def compared_methods(self) -> tuple[Branch, ...]:
        """The methods whose forgetting is measured against another branch."""
        return tuple(branch for branch in self.methods if not self.is_reference(branch.name))

    def is_reference(self, branch: str) -> bool:
        """Whether a branch is what it is measured against: retrain, or what retrains parts of its own."""
        return branch in self._own_references

    @cached_property
    def _own_references(self) -> frozenset[str]:
        own = {row["branch"] for row in self.verdict["rows"] if row.get("reference") == row["branch"]}
        return frozenset({"retrain", *own})

    @cached_property
    def looks(self) -> Mapping[str, style.Look]:
        return style.looks([(b.name, b.name if b.name in REFERENCES else b.method) for b in self.branches])

    def series(self, variant: str, branch: str, subject: str, metric: str, seed: int | None = None) -> Series:
        """A metric by round for one seed, or its mean with the extremes over seeds."""
        seeds = self.seeds if seed is None else (seed,)
        found = [self.metrics.get((variant, branch, s, subject, metric)) for s in seeds]
        return mean_series([one for one in found if one is not None])

    @property
    def meaningless_above(self) -> float:
        """Nats above which the run calls a guarantee meaningless."""
        return float(self.privacy.get("meaningless_above", math.inf))

    def final(self, variant: str, branch: str, subject: str, metric: str) -> float:
        """Mean over seeds at the last round where it was measured; NaN if never."""
        return self.series(variant, branch, subject, metric).last

    def subjects(self, variant: str, metric: str, prefix: str = "") -> tuple[str, ...]:
        """Subjects a metric was measured on, in order of their number, then name."""
        names = {key[3] for key in self.metrics if key[0] == variant and key[4] == metric}
        return tuple(sorted((n for n in names if n.startswith(prefix)), key=_numbered))

    def sample(self, variant: str, branch: str, subject: str, metric: str) -> Floats:
        """Per-record values at the last round they were measured, pooled over seeds, finite ones only."""
        parts = []
        for seed in self.seeds:
            rounds = self.records.get((variant, branch, seed, subject, metric))
            if rounds:
                parts.append(rounds[max(rounds)])
        pooled = np.concatenate(parts) if parts else np.empty(0)
        return pooled[np.isfinite(pooled)]

    def rows(self, variant: str, branch: str, request: int) -> list[Mapping[str, Any]]:
        """The verdict's rows, one per informative seed; one per seed where none is informative."""
        wanted, good = (variant, branch, request), self.good_seeds(variant, request)
        found = [r for r in self.verdict["rows"] if (r["variant"], r["branch"], r["request"]) == wanted]
        return [r for r in found if r["seed"] in good] if good else found

    def values(self, variant: str, branch: str, request: int, key: str) -> list[float]:
        """One number of the verdict per seed, without those that are not defined."""
        raw = [row.get(key) for row in self.rows(variant, branch, request)]
        return [float(v) for v in raw if v is not None and math.isfinite(v)]

    def value(self, variant: str, branch: str, request: int, key: str) -> float:
        """Mean over seeds of one number of the verdict; NaN when no seed has it."""
        found = self.values(variant, branch, request, key)
        return sum(found) / len(found) if found else NAN

    def p_values(self, variant: str, branch: str, request: int) -> list[float]:
        """The forget quality's p on each seed with records enough to quote it; a mean of them is no test."""
        rows = self.rows(variant, branch, request)
        return [
            float(row["forget_quality_p"])
            for row in rows
            if row.get("forget_quality_shown") and row.get("forget_quality_p") is not None
        ]

    def compared(self, variant: str, branch: str, request: int, metric: str) -> list[Mapping[str, Any]]:
        """The judgement's comparisons of one metric with retrain, one per seed."""
        rows = self.rows(variant, branch, request)
        every = [one for row in rows for one in (row.get("judgement") or {}).get("comparisons", ())]
        return [one for one in every if one["metric"] == metric]

    def summary(self, variant: str) -> Mapping[str, Any]:
        """What was judged of a variant when the run ended; empty where nothing was."""
        found = (one for one in self.verdict.get("summary", ()) if one["variant"] == variant)
        return next(found, {})

    def good_seeds(self, variant: str, request: int) -> frozenset[int]:
        """Seeds on which the run can show forgetting for this request; the others are not averaged in."""
        return frozenset(
            check["seed"]
            for check in self.verdict["informative"]
            if check["variant"] == variant and check["request"] == request and check["informative"]
        )

    def informative(self, variant: str, request: int) -> bool:
        """Whether the run can show forgetting for this request, on some seed."""
        return bool(self.good_seeds(variant, request))

    def trust(self, variant: str) -> Mapping[str, tuple[float, bool]]:
        """Metric -> (AUC of telling keep from retrain, trusted)."""
        return {
            row["metric"]: (NAN if row["auc"] is None else float(row["auc"]), bool(row["trusted"]))
            for row in self.verdict.get("trust", ())
            if row["variant"] == variant
        }

    def trusted(self, variant: str, metric: str) -> bool:
        """A metric without an entry has not failed any check, and is trusted."""
        return self.trust(variant).get(metric, (NAN, True))[1]

    def quotable(self, variant: str, request: int, metric: str) -> bool:
        """Informative request and trusted metric: otherwise values are greyed, not quoted."""
        return self.informative(variant, request) and self.trusted(variant, metric)


def _distinct(name: str, method: str, title: str, titles: Sequence[str]) -> str:
    if name in REFERENCES:
        return name
    return f"{title} ({name})" if titles.count(title) > 1 and name != method else title


def _numbered(subject: str) -> tuple[str, int, str]:
    kind, _, rest = subject.partition(":")
    return kind, int(rest) if rest.isdigit() else -1, rest


def _optional(run: RunDirectory, name: str) -> Mapping[str, Any]:
    """A JSON file of the run, empty where it has none."""
    found: Mapping[str, Any] = run.json(name) if run.file(f"{name}.json").exists() else {}
    return found


def _releases(run: RunDirectory) -> int:
    if not run.file("ledger.json").exists():
        return 0
    return sum(len(entry.get("releases") or ()) for entry in run.json("ledger").get("entries", ()))


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[Key, Series]:
    found: defaultdict[Key, dict[int, float]] = defaultdict(dict)
    for r in rows:
        key = r["variant"], r["branch"], r["seed"], r["subject"], r["metric"]
        found[key][r["round"]] = _number(r["value"])
    return {key: one_series(points) for key, points in found.items()}


def _samples(rows: Sequence[Mapping[str, Any]]) -> dict[Key, dict[int, Floats]]:
    found: defaultdict[Key, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        key = r["variant"], r["branch"], r["seed"], r["subject"], r["metric"]
        found[key][r["round"]].append(_number(r["value"]))
    return {key: {at: np.array(v) for at, v in rounds.items()} for key, rounds in found.items()}
