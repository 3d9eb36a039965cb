"""What an audit is: an attack on a finished life, checked before the life begins, told in rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedsim.config import Config

if TYPE_CHECKING:
    from fedsim.data.names import ClientNames
    from fedsim.federation.runtime import ClientRuntime
    from fedsim.federation.state import Federation
    from fedsim.living.context import LifeContext
    from fedsim.model.adapter import AdapterModel

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckedLife:
    """A life that has not begun: what an audit may check itself against."""

    runtime: ClientRuntime
    model: AdapterModel
    names: ClientNames


@dataclass(frozen=True, kw_only=True)
class FinishedLife:
    """A life that is over. ``federation`` gives a branch's state at its end, ``note`` tells the user."""

    context: LifeContext
    federation: Callable[[str], Federation]
    note: Callable[[str], None]

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

    def rows(self, life: FinishedLife) -> Iterator[Row]:
        """What the audit finds on a life, for every branch that it looks at."""
        raise NotImplementedError

    def warning(self, row: Row) -> str | None:
        """What a user must be told at once of a row, if anything."""
        return None
