"""What an audit is: an attack on a finished life, checked before the life begins, told in rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.config import Config

if TYPE_CHECKING:
    from fedsim.data.names import ClientNames
    from fedsim.federation.runtime import ClientRuntime
    from fedsim.federation.state import Federation
    from fedsim.life.script import Life
    from fedsim.living.context import LifeContext
    from fedsim.model.adapter import AdapterModel
    from fedsim.model.predictor import Predictor
    from fedsim.model.vectors import Arrays
    from fedsim.training.jobs import TrainJob, TrainResult

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckedLife:
    """A life that has not begun: what an audit may check itself against."""

    life: Life
    runtime: ClientRuntime
    model: AdapterModel

    @property
    def names(self) -> ClientNames:
        return self.life.names


@dataclass(frozen=True, kw_only=True)
class FinishedLife:
    """A life that is over. ``federation`` gives a branch's state at its end, ``note`` tells the user.

    Branches are called as in the tables: ``retrain`` is the reference at the end.
    """

    context: LifeContext
    federation: Callable[[str], Federation]
    note: Callable[[str], None]

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that reach the end, each with one adapter: ensembles are left out."""
        names = (branch.name for branch in self.context.branches if not branch.part)
        shown = ("retrain" if name == self._reference else name for name in names)
        return tuple(name for name in shown if not name.startswith("retrain#"))

    @property
    def ensembles(self) -> tuple[str, ...]:
        """The methods that answer with several adapters."""
        return tuple(self.context.ensembles)

    @property
    def _reference(self) -> str:
        from fedsim.life.steps import retrain_name

        return retrain_name(len(self.context.life.requests))

    def adapter(self, branch: str) -> Arrays:
        """What a branch has trained in the end; what nobody trains is put into the model with it."""
        return self.federation(self._reference if branch == "retrain" else branch).adapter

    def views(self, branch: str) -> tuple[str, ...]:
        """The views there are of a branch's model, the bare one first."""
        from fedsim.living.views import Views

        return Views(self.context).onto(branch)

    @contextmanager
    def predictor(self, adapter: Arrays, view: str = "") -> Iterator[Predictor]:
        """The model with any adapter, bare or as a view shows it at the end."""
        from fedsim.living.views import Views

        model, views = self.context.model, Views(self.context)
        model.load(adapter)
        with model.measuring() as module:
            yield views.predictor(module, view, self.context.life.horizon)

    def train(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        """Train with the life's own executor, side by side where it can; no ledger of the run is charged."""
        return self.context.engine.runtime.executor.train_clients(jobs)

    def row(self, **found: Any) -> Row:
        """A row of this life."""
        return {"variant": self.context.variant, "seed": self.context.seed, **found}


class AuditConfig(Config):
    """An audit as a scenario asks for it; the configuration is the audit.

    An audit draws from streams of its own and charges a ledger of its own.
    """

    audit: str
    summary: ClassVar[str]

    def check(self, life: CheckedLife) -> None:
        """Refuse what would fail once the life is over.

        Raises:
            ConfigError: its key is below the audit's place.
        """

    def parts(self, life: FinishedLife) -> Sequence[int]:
        """What it does one after the other; a run that is killed goes on with the part it was in."""
        return (0,)

    def rows(self, life: FinishedLife, part: int) -> Iterator[Row]:
        """What a part of the audit finds on a life, for every branch that it looks at."""
        raise NotImplementedError

    def warning(self, row: Row) -> str | None:
        """What a user must be told at once of a row, if anything."""
        return None
