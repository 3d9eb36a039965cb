"""What the reference costs in privacy: the ledger of a life in which each request is answered by retraining.

Retraining takes back no release. Whoever stays is charged for the rounds that were released before the
request, and again for those that are replayed without the client; only the rounds before the client first
took part are made once. They count for the reference as drawn from those who are in it: a fixed cohort that
is filled up from fewer clients holds each of them more often. The client that went stays charged for what was
released about it before, and for nothing since.

>>> from privacy import Release
>>> def rounds(*ids):
...     return Ledger(
...         Release(round_id=i, branch="x", clients=("a",), unit="client", noise_multiplier=1.0) for i in ids
...     )
>>> asked = Granted(number=1, client="b", round=4, replay_from=3, whole=True)
>>> found = reference_ledger(rounds(*range(1, 9)), {1: rounds(*range(1, 9))}, [asked], until=8)
>>> sum(release.steps for release in found.releases())    # 1 to 4, then 3 to 8
10
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fedsim.life.config import FixedCohort
from fedsim.life.steps import Line
from fedsim.living.context import EPSILON_OF, LifeContext
from fedsim.living.runner import LifeRunner
from privacy import Ledger, Release

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Granted:
    """A request that is answered by retraining after ``round``, from round ``replay_from`` on.

    ``whole`` requests take the client out of the roster.
    """

    number: int
    client: str
    round: int
    replay_from: int
    whole: bool


def reference_ledger(
    keep: Ledger,
    retrained: Mapping[int, Ledger],
    granted: Sequence[Granted],
    *,
    until: int,
    refills: bool = False,
) -> Ledger:
    """All that was released by round ``until``, replays included.

    ``keep`` is the ledger of the life in which no request is answered, ``retrained`` by request the one
    without the clients of that request and of those before it. ``refills`` says that fixed cohorts are filled
    up from those who are there, so that their population is the reference's own.
    """
    done = [request for request in granted if request.round <= until]
    lives = [(keep, 1), *((retrained[request.number], request.replay_from) for request in done)]
    ends = [*(request.round for request in done), until]
    found = Ledger()
    for index, ((ledger, first), last) in enumerate(zip(lives, ends, strict=True)):
        later = done[index:]
        kept_until = min((request.replay_from for request in later), default=until + 1)
        gone = {request.client for request in later if request.whole} if refills else set()
        for release in ledger.releases():
            if not first <= release.round_id <= last:
                continue
            found.extend(_without(release, gone) if release.round_id < kept_until else (release,))
    return found


def _without(release: Release, gone: Collection[str]) -> Iterator[Release]:
    """A release of a fixed cohort as if drawn without the clients that are ``gone``, for those who stay."""
    stay = tuple(name for name in release.clients if name not in gone)
    fewer = len(release.clients) - len(stay)
    if release.sampling != "without_replacement" or not fewer or not stay:
        yield release
        return
    yield replace(release, clients=tuple(name for name in release.clients if name in gone))
    population = release.population - fewer
    size = min(release.sample_size, population)
    yield replace(release, clients=stay, population=population, sample_size=size)


class Reference:
    """The ledger of a reference in a life that was lived to its end.

    ``branch`` is retrain, or an ensemble, which is made of a line of lives for each of its parts.
    """

    def __init__(self, runner: LifeRunner, branch: str = "retrain") -> None:
        self.context: LifeContext = runner.context
        self.branch = branch
        self._runner, self._lines = runner, self.context.ensembles.get(branch, (Line(),))
        rule = self.context.federation.participation
        self._refills = isinstance(rule, FixedCohort) and rule.rate is None and rule.replacement != "none"

    def ledger(self, until: int) -> Ledger:
        """All that was released by a round of the reference."""
        found = Ledger()
        for keep, retrained, granted in self._made:
            found.extend(
                reference_ledger(keep, retrained, granted, until=until, refills=self._refills).releases()
            )
        return found

    @cached_property
    def _made(self) -> list[tuple[Ledger, dict[int, Ledger], list[Granted]]]:
        """For each line its ledger in which no request is answered, those without, and how it is replayed."""
        requests, end = self.context.life.requests, self._runner.final_federation
        return [
            (
                end(line.keep).ledger,
                {request.number: end(line.retrain(request.number)).ledger for request in requests},
                [
                    Granted(
                        number=request.number,
                        client=str(request.client),
                        round=request.round,
                        replay_from=self.context.replay_from[line][request.number],
                        whole=request.scope == "client",
                    )
                    for request in requests
                ],
            )
            for line in self._lines
        ]

    def epsilon_rows(self, metrics: Sequence[Row]) -> Iterator[Row]:
        """What each client has spent by each round of ``retrain`` that the metric rows of its life name."""
        context = self.context
        if not context.life.requests or not context.engine.runtime.pipeline.protects:
            return
        names = ("variant", "seed", "branch")
        here, own = ((context.variant, context.seed, name) for name in ("retrain", self.branch))
        events = {
            row["round"]: row["event"]
            for row in metrics
            if row["metric"] == "update_norm" and tuple(row[name] for name in names) == here
        }
        for round_, event in sorted(events.items()):
            spent = context.epsilon(self.ledger(round_))
            who = {**dict(zip(names, own, strict=True)), "round": round_, "event": event}
            for client in sorted(spent, key=int):
                for unit, value in spent[client].items():
                    yield {
                        **who,
                        "subject": f"client:{client}",
                        "metric": EPSILON_OF[unit],
                        "value": value,
                    }


def with_reference_epsilon(metrics: Sequence[Row], references: Sequence[Reference]) -> list[Row]:
    """Metric rows in which what ``retrain`` has spent is that of its own ledger."""
    spent = set(EPSILON_OF.values())
    rest = [row for row in metrics if row["branch"] != "retrain" or row["metric"] not in spent]
    own = [row for reference in references for row in reference.epsilon_rows(metrics)]
    return sorted([*rest, *own], key=lambda row: (row["variant"], row["seed"], row["branch"], row["round"]))
