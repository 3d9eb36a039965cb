"""Who is there with which data, and who of them takes part in a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.life.config import FixedCohort
from fedsim.life.events.registry import EVENTS
from fedsim.life.schedule import answers
from fedsim.life.script import Life, RecordIds
from fedsim.life.steps import Participant, UnlearningStep
from fedsim.rng import uniform
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.request import Request


@dataclass(frozen=True, kw_only=True)
class Participation:
    """How each round's cohort is drawn."""

    seed: int
    rule: float | FixedCohort

    def cohort(self, round_: int, roster: Sequence[int], nominal: Sequence[int]) -> list[int]:
        """The clients of ``roster`` that take part, in order of id.

        ``nominal`` are the clients that would be there had nobody been forgotten: a fixed cohort
        keeps the place of one that is gone empty (``replacement: none``) or gives it to the next.
        """
        rate = self.rule.rate if isinstance(self.rule, FixedCohort) else self.rule
        if rate is not None:
            drawn = [client for client in roster if self._draw("participation", round_, client) < rate]
            if isinstance(self.rule, FixedCohort):
                drawn = self._ordered(round_, drawn)[: self.rule.cohort]
            return sorted(drawn)
        assert isinstance(self.rule, FixedCohort), "a rule without a rate"
        order = self._ordered(round_, nominal if self.rule.replacement == "none" else roster)
        present = set(roster)
        return sorted(client for client in order[: self.rule.cohort] if client in present)

    def _ordered(self, round_: int, clients: Sequence[int]) -> list[int]:
        return sorted(sorted(clients), key=lambda client: self._draw("priority", round_, client))

    def _draw(self, name: str, round_: int, client: int) -> float:
        return uniform(self.seed, name, round_, client)


class Roster:
    """Who is there with which data, in one branch.

    ``ignores``: no request is answered; ``granted``: so many are obeyed from the start; ``method``: how the
    others are answered; ``among``: who can be there at all. ``pending`` are the unlearning rounds that it
    still owes.
    """

    def __init__(
        self,
        life: Life,
        records: RecordIds,
        *,
        ignores: bool = False,
        granted: int = 0,
        method: MethodConfig | None = None,
        among: frozenset[int] | None = None,
    ) -> None:
        self.life, self.records, self.method = life, records, method
        self.ignores, self.among = ignores, among
        self.asked = [answer.request for answer in answers(life, method)] if method is not None else []
        self.pending: list[UnlearningStep] = []
        self.present: dict[int, set[str]] = {}
        self.forgotten: dict[int, int] = {}
        """Clients that were forgotten whole, with the last round before."""
        self.granted = list(life.requests[:granted])
        """Requests still to come that this branch obeys from the start: it never uses their data."""

    def enter(self, client: int, brings: Sequence[str]) -> None:
        """Join with these records, save those that a granted request will ask to forget."""
        barred = {name for request in self.granted if request.client == client for name in request.record_ids}
        if self.among is None or client in self.among:
            self.present[client] = set(brings) - barred

    def happen(self, after: int) -> None:
        """Let the events between round ``after`` and the next happen."""
        for event in self.life.at(after):
            EVENTS[event.kind].change(event, self)

    def answer(self, number: int) -> None:
        """Answer a request as the branch does: not at all, by going without, or with a method's rounds."""
        if self.ignores:
            return
        self.leave_out(self.life.request(number))
        if self.method is not None:
            request = self.asked[number - 1]
            self.pending.extend(
                UnlearningStep(branch=self.method.branch, request=number, index=index)
                for index in range(self.method.rounds_for(request))
            )

    def helped_by(self, unlearning: UnlearningStep) -> int | None:
        """The past round whose cohort helps in an unlearning round, if it is not drawn like any other."""
        assert self.method is not None, "only a method unlearns"
        return self.method.helped_by(self.asked[unlearning.request - 1], unlearning.index)

    def leave_out(self, request: Request) -> None:
        """From now on without these records; data that come again later are new."""
        if request.client in self.present:
            self.present[request.client] -= set(request.record_ids)
        if request.scope == "client":
            self.forgotten[request.client] = request.round
        if request in self.granted:
            self.granted.remove(request)

    def may_help(self, client: int, past: int) -> bool:
        """Whether a client of a past round's cohort is there, and what it then sent is not forgotten."""
        return bool(self.present.get(client)) and self.forgotten.get(client, 0) < past

    def participants(self, clients: Sequence[int]) -> tuple[Participant, ...]:
        return tuple(
            Participant(
                client=client,
                without=tuple(name for name in self.records[client] if name not in self.present[client]),
            )
            for client in clients
        )

    def active(self) -> list[int]:
        return sorted(client for client, held in self.present.items() if held)
