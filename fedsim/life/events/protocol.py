"""What an event is: how it is written and read, how it changes who is there, what it asks of a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from fedsim.config import Config

if TYPE_CHECKING:
    from fedsim.life.reading import Reader
    from fedsim.life.roster import Roster
    from fedsim.life.script import LifeEvent
    from fedsim.places import KeyPath
    from fedsim.training.config import LocalConfig

Moment = Literal["before_keys", "after_keys", "after_shares", "after_masking", "during_unmasking"]
"""A step of a round, from a client's side: before it advertises its keys, then, once it has shared its
secrets, once its update is masked (and lost on the way), or when the masks are to be taken off. Without
secure aggregation: before it trains, or once it has trained."""


class Condition(Config):
    """What is different about a client for some rounds; travels in its work orders."""

    kind: str

    def silent_from(self) -> Moment | None:
        """The moment of a round from which nothing more is heard of the client."""
        return None

    def local(self, local: LocalConfig) -> LocalConfig:
        """The client's local training under this condition."""
        return local


class EventConfig(Config):
    """An event as it is written under its ``name`` in a timeline."""

    name: ClassVar[str]
    changes_roster: ClassVar[bool] = False
    """Whether it changes who is there, or with which records."""
    condition_type: ClassVar[type[Condition] | None] = None
    """What it puts on clients for some rounds, if anything."""

    def check(self, local: LocalConfig) -> None:
        """Refuse an event that changes nothing under a scenario's local training.

        Raises:
            ConfigError: its key is below the event's place.
        """

    def enter(self, reader: Reader, key: KeyPath) -> None:
        """Check the event against the life so far and write it into it.

        Raises:
            ScenarioError: it cannot happen; its place is ``key`` or below.
        """
        raise NotImplementedError

    @classmethod
    def change(cls, event: LifeEvent, roster: Roster) -> None:
        """Let the event change who is there in a branch."""

    @classmethod
    def milestones(cls, event: LifeEvent) -> frozenset[int]:
        """Rounds that matter because of it: there all items are kept, and answers generated."""
        return frozenset()
