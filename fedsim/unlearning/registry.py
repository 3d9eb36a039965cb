"""Every unlearning method by name: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from fedsim.plugins import registered
from fedsim.unlearning.protocol import MethodConfig

_LISTED = (
    "retrain:Retrain",
    "grad_ascent:GradAscent",
    "grad_diff:GradDiff",
    "npo:Npo",
    "simnpo:SimNpo",
    "idk_dpo:IdkDpo",
    "pdu:Pdu",
    "rmu:Rmu",
    "task_vector:TaskVector",
    "ssd:Ssd",
    "fed_eraser:FedEraser",
    "sisa:Sisa",
    "keyword_filter:KeywordFilter",
)
METHODS = registered(
    MethodConfig, _LISTED, package="fedsim.unlearning.methods", group="fedsim.methods", tag="method"
)

if TYPE_CHECKING:
    MethodChoice = MethodConfig
else:
    MethodChoice = Annotated[Union[tuple(METHODS.values())], Field(discriminator="method")]  # noqa: UP007
