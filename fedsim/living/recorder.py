"""What a life leaves behind: rows of the run's tables, entries of its log, words for the screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedsim.federation.rounds import RoundOutcome
from fedsim.federation.state import Federation
from fedsim.life.steps import retrain_name
from fedsim.life.tree import Segment
from fedsim.living.checkpoints import Rows
from fedsim.living.context import EPSILON_OF, LifeContext
from fedsim.measuring.measure import Measurement
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Progress


class Recorder:
    """Writes down one life. Rows go to the segment that gave them; log and screen are the run's."""

    def __init__(self, context: LifeContext, directory: RunDirectory, progress: Progress) -> None:
        self.context, self.directory, self.progress = context, directory, progress
        references = {retrain_name(request.number) for request in context.life.requests}
        self._unseen = references | {branch.name for branch in context.branches if branch.part}

    def damaged(self, fault: str, round_: int | None) -> None:
        """A checkpoint that was altered, and the round from which the life goes on instead."""
        where = f"round {round_}" if round_ is not None else "the beginning: no checkpoint is whole"
        self.directory.log("checkpoint_damaged", reason=fault, goes_on_from=round_)
        self.progress.note(f"{fault}; going on from {where}")

    def segment_done(self, segment: Segment) -> None:
        self.directory.log(
            "segment",
            variant=self.context.variant,
            seed=self.context.seed,
            branches=list(segment.branches),
            first=segment.start + 1,
            last=segment.end,
        )

    def not_measured(self, branch: str, round_: int, error: Exception) -> None:
        self.directory.log("probe_failed", reason=str(error), **self._who(branch, round_))
        self.progress.note(f"{branch} round {round_}: not measured: {error}")

    def faults(self, outcome: RoundOutcome, segment: Segment, round_: int) -> None:
        """What went wrong in a round, or that nothing happened."""
        where, names = self._who(segment.owner, round_), self.context.holdings.names
        note = f"{segment.owner} round {round_}"
        for client, reason in outcome.failures.items():
            self.directory.log(
                "client_failed", client=client, name=names.name(client), reason=reason, **where
            )
            self.progress.note(f"{note}: {names.text(client)} failed: {reason}")
        for reason in outcome.repeated:
            self.directory.log("round_repeated", reason=reason, **where)
            self.progress.note(f"{note}: repeated: {reason}")
        if outcome.heaviest is not None:
            client, times = outcome.heaviest.client, outcome.heaviest.times
            finite = times if math.isfinite(times) else None
            self.directory.log(
                "update_outweighs", client=client, name=names.name(client), times=finite, **where
            )
        for client in outcome.exhausted:
            self.directory.log("budget_spent", client=client, name=names.name(client), **where)
        if outcome.kind == "empty":
            why = outcome.aborted or "nobody contributed"
            self.directory.log("empty_round", reason=why, **where)
            self.progress.note(f"{note}: {why}; the adapter stays as it was")

    def costs(
        self, outcome: RoundOutcome, segment: Segment, federation: Federation, rows: Rows, round_: int
    ) -> None:
        """A row for every branch that shares the round."""
        cost = {
            "kind": outcome.kind,
            "request": outcome.request,
            "targets": int(outcome.target),
            "client_steps": outcome.taken.steps,
            "tokens": outcome.taken.tokens,
            "bytes_down": outcome.taken.bytes_down,
            "bytes_up": outcome.taken.bytes_up,
            "clients": outcome.taken.clients,
            "failures": len(outcome.failures),
        }
        rows.tables["costs"].extend(
            {**self._who(name, round_), **cost, "stored_bytes": self._stored(name, federation, round_)}
            for name in segment.branches
        )

    def _stored(self, branch: str, federation: Federation, round_: int) -> int:
        """Bytes that the server keeps for a branch beyond the adapter; a history for those that look back."""
        stored = federation.stored_bytes()
        method = next((method for method in self.context.methods if method.branch == branch), None)
        if method is not None and federation.history is not None:
            stored += federation.history.stored_bytes(round_, method.stores)
        return stored

    def model_metrics(
        self, outcome: RoundOutcome, segment: Segment, federation: Federation, rows: Rows, round_: int
    ) -> None:
        """What concerns the whole model: how far it moved, who took part, which budgets are spent."""
        numbers = {
            "update_norm": outcome.update_norm,
            "cohort_size": float(len(outcome.contributors)),
            "failures": float(len(outcome.failures)),
        }
        found = [("model", metric, value) for metric, value in numbers.items()]
        spent = self.context.epsilon(federation.ledger)
        for client in sorted(spent, key=int):
            found += [(f"client:{client}", EPSILON_OF[unit], value) for unit, value in spent[client].items()]
        for who in self._whos(self.shown_as(segment, round_), round_):
            rows.tables["metrics"].extend(
                {**who, "subject": subject, "metric": metric, "value": value}
                for subject, metric, value in found
            )

    def measured(self, found: Measurement, names: Sequence[str], rows: Rows, round_: int) -> None:
        for who in self._whos(names, round_):
            rows.tables["metrics"].extend({**who, **row} for row in found.metrics)
            rows.tables["items"].extend({**who, **row} for row in found.items)
            rows.tables["answers"].extend({**who, **row} for row in found.answers)

    def seconds(self, phase: str, value: float, segment: Segment, rows: Rows, round_: int) -> None:
        who = self._who(segment.owner, round_)
        rows.tables["timings"].append({**who, "phase": phase, "seconds": value})

    def shown_as(self, segment: Segment, round_: int) -> list[str]:
        """The branches under which a round of this segment appears in the metric tables.

        ``retrain`` is spliced: before the first request the life itself, then the branch of the
        requests granted so far.
        """
        names = [branch for branch in segment.branches if branch not in self._unseen]
        granted = sum(request.round <= round_ for request in self.context.life.requests)
        reference = retrain_name(granted) if granted else "keep"
        if self.context.life.requests and reference in segment.branches:
            names.append("retrain")
        return names

    def _whos(self, names: Sequence[str], round_: int) -> list[dict[str, Any]]:
        event = self.context.life.label(round_)
        return [{**self._who(name, round_), "event": event} for name in names]

    def _who(self, branch: str, round_: int) -> dict[str, Any]:
        return {
            "variant": self.context.variant,
            "branch": branch,
            "seed": self.context.seed,
            "round": round_,
        }
