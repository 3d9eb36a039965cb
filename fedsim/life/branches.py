"""One life as branches: keep, leave, the retrained references, and one for each method.

A branch is unrolled into steps that say all that decides a round: its number, who takes part with
which data, and which unlearning round it is, if any. Who takes part is drawn per client and round from
keyed streams: nobody's draw depends on who else is there.

The reference at round t is the life without everyone whose request was granted by t: one
``retrain#k`` branch per request prefix, each living until the next request.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.life.roster import Participation, Roster
from fedsim.life.script import Life, RecordIds
from fedsim.life.steps import Branch, Step, retrain_name
from fedsim.unlearning.protocol import MethodConfig


def unroll(
    life: Life, records: RecordIds, participation: Participation, methods: Sequence[MethodConfig]
) -> tuple[Branch, ...]:
    """Every branch of a life: keep, leave, one retrain per request prefix, and each method."""
    nominal: dict[int, list[int]] = {}

    def live(
        name: str, granted: int | None, method: MethodConfig | None, until: int, observed_from: int = 0
    ) -> Branch:
        steps: list[Step] = []
        rosters = []
        asked_before = life.requests[: granted or 0]
        roster = Roster(life, records, branch=name, granted=asked_before, method=method)
        for round_ in range(1, until + 1):
            roster.happen(round_ - 1)
            active = roster.active()
            if name == "keep":
                nominal[round_] = active
            rosters.append(tuple(active))
            clients = participation.cohort(round_, active, nominal[round_])
            unlearning = roster.pending.pop(0) if roster.pending else None
            helped_by = roster.helped_by(unlearning) if unlearning else None
            if helped_by is not None:
                clients = [p.client for p in steps[helped_by - 1].cohort if p.client in active]
            asked = {*clients, *([life.request(unlearning.request).client] if unlearning else [])}
            conditions = ((who, what) for who, what in life.conditions(round_).items() if who in asked)
            steps.append(
                Step(
                    round=round_,
                    cohort=roster.participants(clients),
                    nominal_size=len(nominal[round_]),
                    unlearning=unlearning,
                    conditions=tuple(conditions),
                )
            )
        return Branch(name=name, steps=tuple(steps), observed_from=observed_from, rosters=tuple(rosters))

    branches = [live("keep", None, None, life.horizon), live("leave", None, None, life.horizon)]
    for prefix, request in enumerate(life.requests, start=1):
        last = life.requests[prefix].round if prefix < len(life.requests) else life.horizon
        branches.append(live(retrain_name(prefix), prefix, None, last, request.round))
    for method in methods:
        if method.has_branch:
            branches.append(live(method.branch, None, method, life.horizon))
    return tuple(branches)
