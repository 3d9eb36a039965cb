"""Progress of a run: a live line on a terminal, plain lines elsewhere.

Shows rounds done of all rounds that the tree of branches needs, which branch is running, client
updates per second and the time left.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


class Progress(Protocol):
    """Told of every finished round."""

    def start(self, total_rounds: int) -> None: ...

    def round(self, branch: str, round_: int, clients: int) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Says nothing."""

    def start(self, total_rounds: int) -> None:
        pass

    def round(self, branch: str, round_: int, clients: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(kw_only=True)
class Rate:
    """Rounds and client updates since the start of this process, and what they predict."""

    total: int
    started: float = field(default_factory=time.monotonic)
    rounds: int = 0
    updates: int = 0

    def add(self, clients: int) -> None:
        self.rounds += 1
        self.updates += clients

    def text(self) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-6)
        left = elapsed / max(self.rounds, 1) * max(self.total - self.rounds, 0)
        rate = self.updates / elapsed
        speed = f"{rate:.1f} updates/s" if rate >= 1 else f"{60 * rate:.1f} updates/min"
        return f"{speed}, {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class PlainProgress:
    """One line every few seconds, for logs."""

    def __init__(self, stream: TextIO = sys.stderr, every: float = 5.0) -> None:
        self.stream, self.every = stream, every
        self.rate = Rate(total=0)
        self.last = 0.0

    def start(self, total_rounds: int) -> None:
        self.rate = Rate(total=total_rounds)
        self.note(f"{total_rounds} rounds to run over all branches")

    def round(self, branch: str, round_: int, clients: int) -> None:
        self.rate.add(clients)
        now = time.monotonic()
        if now - self.last >= self.every or self.rate.rounds == self.rate.total:
            self.last = now
            done = f"{self.rate.rounds}/{self.rate.total}"
            self.note(f"rounds {done}  {branch} at round {round_}  {self.rate.text()}")

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        pass


class TerminalProgress:
    """A live bar."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = RichProgress(
            TextColumn("[bold]rounds"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[where]}", markup=False),
            TextColumn("{task.fields[rate]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.rate = Rate(total=0)
        self.task: TaskID | None = None

    def start(self, total_rounds: int) -> None:
        self.rate = Rate(total=total_rounds)
        self.task = self.bar.add_task("rounds", total=total_rounds, where="", rate="")
        self.bar.start()

    def round(self, branch: str, round_: int, clients: int) -> None:
        assert self.task is not None, "start comes first"
        self.rate.add(clients)
        self.bar.update(self.task, advance=1, where=f"{branch} at round {round_}", rate=self.rate.text())

    def note(self, text: str) -> None:
        self.console.print(Text(text))  # what clients and data say is no markup

    def close(self) -> None:
        self.bar.stop()


def make_progress(console: Console) -> Progress:
    """A live bar on a terminal, plain lines otherwise."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(sys.stderr)
