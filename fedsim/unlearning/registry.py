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
    "kl_min:KlMin",
    "npo:Npo",
    "simnpo:SimNpo",
    "idk_dpo:IdkDpo",
    "idk_nll:IdkNll",
    "undial:Undial",
    "ce_u:CeU",
    "wga:Wga",
    "satimp:SatImp",
    "ugradsl:UGradSl",
    "pdu:Pdu",
    "rmu:Rmu",
    "task_vector:TaskVector",
    "breadcrumbs:Breadcrumbs",
    "negation:Negation",
    "pga:Pga",
    "puf:Puf",
    "ssd:Ssd",
    "fed_eraser:FedEraser",
    "fed_osd:FedOsd",
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
