"""Every event by name: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, create_model, model_validator

from fedsim.config import Config
from fedsim.life.events.protocol import Condition, EventConfig
from fedsim.plugins import registered

_LISTED = (
    "join:Join",
    "train:Train",
    "forget:Forget",
    "leave:Leave",
    "rejoin:Rejoin",
    "drop:Drop",
    "slow:Slow",
    "probe:ProbeEvent",
)
EVENTS = registered(EventConfig, _LISTED, package="fedsim.life.events", group="fedsim.events", tag="name")


class OneEvent(Config):
    """One thing that happens; exactly one key."""

    @model_validator(mode="after")
    def _exactly_one(self) -> OneEvent:
        given = [name for name in EVENTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"an event has exactly one of {', '.join(EVENTS)}; this one has "
                f"{' and '.join(given) if given else 'none'}"
            )
        return self

    def given(self) -> EventConfig:
        """The event that the mapping holds."""
        found: EventConfig = next(one for name in EVENTS if (one := getattr(self, name)) is not None)
        return found


if TYPE_CHECKING:
    Event = OneEvent
    ConditionChoice = Condition
else:
    _keys: dict[str, Any] = {name: (cls | None, None) for name, cls in EVENTS.items()}
    Event = create_model("Event", __base__=OneEvent, __doc__=OneEvent.__doc__, **_keys)
    _CONDITIONS = tuple(cls.condition_type for cls in EVENTS.values() if cls.condition_type is not None)
    ConditionChoice = _CONDITIONS[0]
    if len(_CONDITIONS) > 1:
        ConditionChoice = Annotated[Union[_CONDITIONS], Field(discriminator="kind")]  # noqa: UP007
