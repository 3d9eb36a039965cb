"""What stages may stand together.

Checked are their order, what nobody would account for, what they make of a wire, and what a client that
passes them is charged.

>>> from privacy.clipping import ClipConfig, ClipStage
>>> wires, channel = fold([ClipStage(ClipConfig(norm=2.0))], Nominal())
>>> [wire.l2_bound for wire in wires], channel
([None, 2.0], None)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from privacy.contexts import ClientContext, Metric, Nominal
from privacy.errors import LedgerError, PipelineError
from privacy.ledger import Ledger
from privacy.local import LocalTask
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Channel
from privacy.units import Weighting

PLACES: tuple[Literal["local", "update", "channel"], ...] = ("local", "update", "channel")


def check_order(facts: Sequence[Facts]) -> None:
    """Local stages, then update stages, then at most one channel; nothing twice."""
    names = [fact.name for fact in facts]
    for fact in facts:
        if names.count(fact.name) > 1:
            raise PipelineError(f"stage {fact.name!r} appears {names.count(fact.name)} times; keep one")
    for before, after in itertools.pairwise(facts):
        if PLACES.index(before.place) > PLACES.index(after.place):
            raise PipelineError(
                f"{after.name} after {before.name}: {after.name} acts on the {after.place}, which is over by "
                f"then; put {after.name} before {before.name}"
            )
    for place in ("local", "channel"):
        same = [fact.name for fact in facts if fact.place == place]
        if len(same) > 1:
            raise PipelineError(f"stages {same} all own the {place}; keep one")


def check_accounted(
    facts: Sequence[Facts], weighting: Weighting, metrics: Sequence[Metric], public_counts: bool
) -> None:
    """Beside a DP stage, nothing that depends on records may leave a client unaccounted."""
    private = [fact.name for fact in facts if fact.charges is not None]
    names = [metric.name for metric in metrics]
    if len(set(names)) != len(names):
        raise PipelineError(f"metrics={names} names one twice")
    if not private:
        return
    leaking = [metric.name for metric in metrics if not metric.public]
    if leaking:
        raise PipelineError(
            f"metrics={leaking} depend on records and {private[0]} does not account for them; drop them, or "
            "declare public=True if they do not"
        )
    central = [fact.name for fact in facts if fact.central]
    if weighting == "examples" and central:
        raise PipelineError(
            f"weighting='examples' beside {central[0]} gives clients with many records more weight than its "
            "noise is sized for; use weighting='uniform'"
        )
    if weighting == "examples" and not public_counts:
        raise PipelineError(
            f"weighting='examples' beside {private[0]} sends the number of records, which is not accounted "
            "for; use weighting='uniform'"
        )


def _check_not_lengthened(name: str, sized: float, later: Sequence[Stage], wires: Sequence[Wire]) -> None:
    """Noise on the sum is sized for what comes in; nothing behind may lift that."""
    for stage, wire in zip(later, wires, strict=True):
        if wire.l2_bound is None or wire.l2_bound > sized * (1 + 1e-9):
            bound = "without bound" if wire.l2_bound is None else f"up to a norm of {wire.l2_bound:.3g}"
            raise PipelineError(
                f"{stage.facts.name} after {name} lengthens updates {bound}, and {name} sized its noise for "
                f"{sized:.3g}; put {stage.facts.name} before {name}, or leave it out"
            )


def fold(stages: Sequence[Stage], nominal: Nominal) -> tuple[tuple[Wire, ...], Channel | None]:
    """The wire before the first stage and after each one, and the channel that a stage provides."""
    wires = [Wire(kind="float", l2_bound=None, dimension=nominal.dimension, min_cohort=nominal.min_cohort)]
    channel: Channel | None = None
    for stage in stages:
        if wires[-1].kind not in stage.facts.takes:
            raise PipelineError(
                f"{stage.facts.name} takes {' or '.join(stage.facts.takes)}, but gets {wires[-1].kind}"
            )
        channel = stage.channel(wires[-1], nominal) or channel
        wires.append(stage.wire(wires[-1], nominal))
    for index, stage in enumerate(stages):
        sized = wires[index].l2_bound
        if stage.facts.central and sized is not None:
            _check_not_lengthened(stage.facts.name, sized, stages[index + 1 :], wires[index + 2 :])
    if wires[-1].kind == "grid":
        name = stages[-1].facts.name
        raise PipelineError(
            f"{name} without secure_aggregation: one client's share of the noise protects little; put "
            "secure_aggregation behind it, or use local_dp"
        )
    return tuple(wires), channel


def check_charges(
    stages: Sequence[Stage], made: Ledger, context: ClientContext, task: LocalTask | None
) -> None:
    """Check that a client's releases are those that its stages make in one attempt.

    A stage that owns local training needs the ``task``. `LedgerError` if they are not.

    A server that believed its clients could be told that nothing was charged, or that others were.
    """
    expected = Ledger(release for stage in stages for release in stage.charged(context, task))
    if not made.agrees_with(expected):
        raise LedgerError(f"says that {_told(made)} was charged, where its stages charge {_told(expected)}")


def _told(ledger: Ledger) -> str:
    rows = [
        f"{each.steps} x noise {each.noise_multiplier:.6g} to {' '.join(each.clients)} in round "
        f"{each.round_id}"
        for each in ledger.releases()
    ]
    return ", ".join(rows) or "nothing"
