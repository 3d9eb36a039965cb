"""Where in a scenario something was written, so that errors can name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]


class ScenarioError(ValueError):
    """A scenario cannot be run as written. The message names file, line, key, rule and a way out."""


def dotted(key: KeyPath) -> str:
    """``("timeline", 2, "forget")`` as ``timeline[2].forget``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the values of a scenario came from.

    ``lines`` are 1-based; ``overrides`` say what replaced a key's value in the file (``--set a.b=1``,
    or a sweep's value). ``methods_at`` are the positions, in the written ``compare`` list, of the
    methods: branches that are always there may stand between them.
    """

    file: str
    lines: Mapping[KeyPath, int]
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    methods_at: tuple[int, ...] = ()

    def place(self, key: KeyPath) -> str:
        """``file:line: a.b[2].c`` of a key, by the nearest key above it that stands in the file."""
        key = self._as_written(key)
        shown = dotted(key)
        for path, text in reversed(list(self.overrides.items())):
            if key[: len(path)] == path:
                return text if key == path else f"{text}: {shown}"
        below = [text for path, text in self.overrides.items() if path[: len(key)] == key]
        if key not in self.lines and below:
            return f"{below[-1]}: {shown}" if shown else below[-1]
        at = self.line(key)
        where = f"{self.file}:{at}" if at else self.file
        also = f" (with {below[-1]})" if below else ""
        return f"{where}: {shown}{also}" if shown else where

    def line(self, key: KeyPath) -> int:
        """The line of a key or of the nearest key above it; 0 when none stands in the file."""
        return next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 0)

    def error(self, key: KeyPath, message: str) -> ScenarioError:
        return ScenarioError(f"{self.place(key)}: {message}")

    def _as_written(self, key: KeyPath) -> KeyPath:
        if len(key) > 1 and key[0] == "compare" and isinstance(key[1], int) and key[1] < len(self.methods_at):
            return ("compare", self.methods_at[key[1]], *key[2:])
        return key
