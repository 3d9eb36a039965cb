"""Branches as a tree of segments: every step they have in common runs once.

Branches whose first n steps are equal share them, so a shared prefix is shared by construction, and a
client's absence changes nothing before its first participation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fedsim.life.steps import Branch, Step


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of steps that the same branches share, with what follows where they part."""

    branches: tuple[str, ...]
    start: int
    steps: tuple[Step, ...]
    children: tuple[Segment, ...] = field(default=())

    @property
    def owner(self) -> str:
        """The branch that names this segment's checkpoints: the first that shares it."""
        return self.branches[0]

    @property
    def end(self) -> int:
        """The last round of the segment."""
        return self.start + len(self.steps)

    def walk(self) -> Iterator[tuple[Segment, Segment | None]]:
        """Every segment below and including this one with its parent, depth first, parents first."""
        stack: list[tuple[Segment, Segment | None]] = [(self, None)]
        while stack:
            segment, parent = stack.pop()
            yield segment, parent
            stack.extend((child, segment) for child in reversed(segment.children))


def build_tree(branches: Sequence[Branch]) -> Segment:
    """Merge branches into segments: equal steps in the same place are one step."""
    return _segment([(branch.name, branch.steps) for branch in branches], start=0)


def _segment(group: list[tuple[str, tuple[Step, ...]]], start: int) -> Segment:
    depth = start
    while True:
        following = {steps[depth] if len(steps) > depth else None for _, steps in group}
        if len(following) != 1 or None in following:
            break
        depth += 1
    parts: dict[Step, list[tuple[str, tuple[Step, ...]]]] = {}
    for name, steps in group:
        if len(steps) > depth:
            parts.setdefault(steps[depth], []).append((name, steps))
    longest = max(group, key=lambda item: len(item[1]))[1]
    return Segment(
        branches=tuple(name for name, _ in group),
        start=start,
        steps=longest[start:depth],
        children=tuple(_segment(part, depth) for part in parts.values()),
    )
