"""Lanes: the segments of a life that are being lived, and what of them is on disk.

Every few rounds all lanes are saved. A resumed run goes back to the last round at which that was done, so it
forms the same cohorts and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from fedsim.federation.history import StoredHistory, Stretch
from fedsim.federation.state import Federation
from fedsim.life.steps import Step
from fedsim.life.tree import Segment
from fedsim.living.checkpoints import Checkpoints, Rows
from fedsim.living.context import LifeContext
from fedsim.living.recorder import Recorder
from fedsim.measuring.measure import Measurement
from fedsim.storage.directory import RunDirectory
from fedsim.storage.whole import folder_name


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement, and what decided it: the adapter's version, detail, generation, and granted requests."""

    of: tuple[int, bool, bool, tuple[int, ...]]
    found: Measurement


@dataclass(kw_only=True)
class Lane:
    """A segment that is being lived: its state, and the rows it has given so far.

    ``measured`` holds the last measurement by view; it is reused while nothing that decides it changes.
    """

    segment: Segment
    federation: Federation
    rows: Rows
    measured: dict[str, Measured] = field(default_factory=dict)

    def step(self, round_: int) -> Step:
        return self.segment.steps[round_ - self.segment.start - 1]


class Lanes:
    """Begins, parts, saves and resumes the lanes of one life."""

    def __init__(self, context: LifeContext, directory: RunDirectory, recorder: Recorder) -> None:
        self.context, self.recorder = context, recorder
        self.every = context.checkpoint_every
        self.segments = [segment for segment, _ in context.tree.walk()]
        rounds = range(1, context.life.horizon + 1)
        self.looking_back = {m.branch for m in context.methods if any(map(m.stores, rounds))}
        self.checkpoints = Checkpoints(
            root=directory.path / "checkpoints" / folder_name(context.variant) / str(context.seed),
            model=context.model,
            algorithm=context.federation.strategy,
        )

    def first(self) -> Lane:
        """The lane of a life that has not begun, with fresh parameters."""
        adapter = self.context.model.fresh(self.context.seed)
        federation = Federation(algorithm=self.context.federation.strategy, adapter=adapter)
        return self._lane(self.context.tree, federation, Rows())

    def _lane(self, segment: Segment, federation: Federation, rows: Rows) -> Lane:
        """The lane of a segment; its rounds are stored if the method of one of its branches wants that."""
        federation.history = None
        if not self.looking_back.isdisjoint(segment.branches):
            federation.history = StoredHistory(self._stretches(segment))
        return Lane(segment=segment, federation=federation, rows=rows)

    def _stretches(self, segment: Segment) -> tuple[Stretch, ...]:
        """Where the rounds that lead through a segment are stored, from the first on."""
        through = [
            s for s in self.segments if s.end <= segment.end and set(segment.branches) <= set(s.branches)
        ]
        return tuple(
            Stretch(folder=self.checkpoints.history(s), first=s.start + 1, last=s.end) for s in through
        )

    def rows(self) -> Iterator[Rows]:
        """The rows of every segment of a finished life, parents first."""
        for segment in self.segments:
            yield self.checkpoints.rows(segment, segment.end)

    def final_federation(self, branch: str) -> Federation:
        """The state at the end of a branch."""
        leaf = next(segment for segment in reversed(self.segments) if branch in segment.branches)
        return self.checkpoints.federation(leaf, leaf.end)

    def reached(self) -> int | None:
        """The last round after which all that had begun is on disk, whole; None before the first.

        Checkpoints that are not as they were written are named, and the round before them is taken. What was
        written after the round that is reached is removed.
        """
        round_, faults = self._last_whole()
        for fault in sorted(faults):
            self.recorder.damaged(fault, round_)
        self.checkpoints.keep_only(self._begun(round_) if round_ is not None else ())
        return round_

    def _last_whole(self) -> tuple[int | None, Collection[str]]:
        """The last round whose checkpoints are all whole, and what is wrong with those after it."""
        last = max(segment.end for segment in self.segments)
        faults: set[str] = set()
        for round_ in range(last, -1, -1):
            begun = self._begun(round_)
            if (round_ % self.every and round_ != last) or not begun:
                continue
            if not all(self.checkpoints.exists(*place) for place in begun):
                continue
            found = [fault for place in begun if (fault := self.checkpoints.damage(*place)) is not None]
            if not found:
                return round_, faults
            faults.update(found)
        return None, faults

    def _begun(self, round_: int) -> list[tuple[Segment, int]]:
        """Segments that had begun by a round, and the round at which each then stood."""
        return [(s, min(s.end, round_)) for s in self.segments if s.start < round_ or s.end <= round_]

    def resumed(self, round_: int) -> list[Lane]:
        """The lanes that go on after a round, from disk; what is done counts as progress."""
        lanes = []
        for segment, parent in self.context.tree.walk():
            for step in segment.steps[: max(round_ - segment.start, 0)]:
                self.recorder.progress.round(segment.owner, step.round, 0)
            if segment.start < round_ < segment.end:
                federation = self.checkpoints.federation(segment, round_)
                rows = self.checkpoints.rows(segment, round_)
                lanes.append(self._lane(segment, federation, rows))
            elif segment.start == round_ < segment.end and parent is not None:
                federation = self.checkpoints.federation(parent, parent.end)
                lanes.append(self._lane(segment, federation, Rows()))
        return lanes

    def saved(self, lanes: Sequence[Lane], round_: int) -> list[Lane]:
        """Save what ends here, and all the rest when it is time to; give the lanes that go on."""
        if round_ % self.every == 0:
            for lane in lanes:
                if lane.segment.end > round_:
                    self.checkpoints.save(lane.segment, round_, lane.federation, lane.rows)
        going = self.parted(lanes, round_)
        if round_ % self.every == 0 or not going:
            self._tidy(round_)
        return going

    def parted(self, lanes: Sequence[Lane], round_: int) -> list[Lane]:
        """Save lanes whose segment ends with this round, begin those that follow; give all that go on."""
        going: list[Lane] = []
        for lane in lanes:
            segment = lane.segment
            if segment.end > round_:
                going.append(lane)
                continue
            self.checkpoints.save(segment, round_, lane.federation, lane.rows)
            self.recorder.segment_done(segment)
            children = [self._lane(child, lane.federation.fork(), Rows()) for child in segment.children]
            going.extend(self.parted(children, round_))
        return going

    def _tidy(self, round_: int) -> None:
        """Delete the checkpoints inside segments that those of this round replace."""
        for segment in self.segments:
            for earlier in range(segment.start + 1, min(segment.end, round_)):
                if earlier % self.every == 0:
                    self.checkpoints.remove(segment, earlier)
