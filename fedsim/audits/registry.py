"""Every audit by name: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from fedsim.audits.protocol import AuditConfig
from fedsim.plugins import registered

_LISTED = (
    "canaries:CanaryAudit",
    "gradient_inversion:InversionAudit",
    "relearning:Relearning",
)
AUDITS = registered(AuditConfig, _LISTED, package="fedsim.audits.kinds", group="fedsim.audits", tag="audit")

if TYPE_CHECKING:
    AuditChoice = AuditConfig
else:
    AuditChoice = Annotated[Union[tuple(AUDITS.values())], Field(discriminator="audit")]  # noqa: UP007
