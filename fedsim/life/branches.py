"""One life as branches: keep, leave, the retrained references, and one for each method.

A branch is unrolled into steps that say all that decides a round: its number, who takes part with
which data, and which unlearning round it is, if any. Who takes part is drawn per client and round from
keyed streams: nobody's draw depends on who else is there.

The reference at round t is the life without everyone whose request was granted by t: one
``retrain#k`` branch per request prefix, each living until the next request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim.life.roster import Participation, Roster
from fedsim.life.script import Life, RecordIds
from fedsim.life.steps import Branch, Line, Step
from fedsim.unlearning.protocol import MethodConfig


def unroll(
    life: Life, records: RecordIds, participation: Participation, methods: Sequence[MethodConfig]
) -> tuple[Branch, ...]:
    """Every branch of a life: keep, leave, one retrain per request prefix, and what each method adds.

    That is a branch, or for a method that trains in parts the first three of each part.
    """
    lives = _Lives(life, records, participation)
    branches = lives.without_method(Line())
    nominal = branches[0].rosters
    for method in methods:
        for line, clients in lines_of(method, life).items():
            branches += lives.without_method(line, clients)
        if method.has_branch and not method.parts(life.members()):
            branches.append(lives.live(method.branch, nominal, method=method))
    return tuple(branches)


def lines_of(method: MethodConfig, life: Life) -> dict[Line, frozenset[int]]:
    """The parts in which a method trains, with their clients; empty if it trains as all others do."""
    parts = method.parts(life.members())
    return {Line(f"{method.branch}/{index}/"): among for index, among in enumerate(parts)}


@dataclass(frozen=True)
class _Lives:
    """Unrolls one branch after the other."""

    life: Life
    records: RecordIds
    participation: Participation

    def without_method(self, line: Line, among: frozenset[int] | None = None) -> list[Branch]:
        """Keep, leave, and a retrain for each request prefix, of all clients or of those ``among``."""
        life = self.life
        keep = self.live(line.keep, None, ignores=True, among=among)
        branches = [keep, self.live(line.leave, keep.rosters, among=among)]
        for prefix, request in enumerate(life.requests, start=1):
            last = life.requests[prefix].round if prefix < len(life.requests) else life.horizon
            gone = self.live(line.retrain(prefix), keep.rosters, granted=prefix, until=last, among=among)
            branches.append(replace(gone, observed_from=request.round))
        return branches

    def live(
        self,
        name: str,
        nominal: Sequence[Sequence[int]] | None,
        *,
        until: int | None = None,
        among: frozenset[int] | None = None,
        **answering: Any,
    ) -> Branch:
        """One branch to its last round; ``answering`` says how it answers requests (see ``Roster``).

        ``nominal`` says who would be there in each round had nobody been forgotten; None: who is there.
        """
        life = self.life
        steps: list[Step] = []
        rosters: list[tuple[int, ...]] = []
        roster = Roster(life, self.records, among=among, **answering)
        for round_ in range(1, (life.horizon if until is None else until) + 1):
            roster.happen(round_ - 1)
            active = roster.active()
            rosters.append(tuple(active))
            there = active if nominal is None else nominal[round_ - 1]
            unlearning = roster.pending.pop(0) if roster.pending else None
            helped_by = roster.helped_by(unlearning) if unlearning else None
            clients = self.participation.cohort(round_, active, there)
            if helped_by is not None:
                then = [participant.client for participant in steps[helped_by - 1].cohort]
                clients = [client for client in then if roster.may_help(client, helped_by)]
            asked = {*clients, *([life.request(unlearning.request).client] if unlearning else [])}
            conditions = ((who, what) for who, what in life.conditions(round_).items() if who in asked)
            steps.append(
                Step(
                    round=round_,
                    cohort=roster.participants(clients),
                    nominal_size=len(there),
                    unlearning=unlearning,
                    conditions=tuple(conditions),
                )
            )
        return Branch(name=name, steps=tuple(steps), rosters=tuple(rosters), part=among is not None)
