"""Every unlearning method by name: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from fedsim.plugins import with_plugins
from fedsim.unlearning.methods.grad_ascent import GradAscent
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.methods.npo import Npo
from fedsim.unlearning.methods.retrain import Retrain
from fedsim.unlearning.methods.simnpo import SimNpo
from fedsim.unlearning.protocol import MethodConfig

_LISTED: tuple[type[MethodConfig], ...] = (
    Retrain,
    GradAscent,
    GradDiff,
    Npo,
    SimNpo,
)
METHODS = with_plugins(_LISTED, group="fedsim.methods", tag="method")

if TYPE_CHECKING:
    MethodChoice = MethodConfig
else:
    MethodChoice = Annotated[Union[tuple(METHODS.values())], Field(discriminator="method")]  # noqa: UP007
