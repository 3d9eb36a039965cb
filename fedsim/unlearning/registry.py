"""Every unlearning method by name: one line each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.unlearning.methods.grad_ascent import GradAscent
from fedsim.unlearning.methods.grad_diff import GradDiff
from fedsim.unlearning.methods.npo import Npo
from fedsim.unlearning.methods.retrain import Retrain
from fedsim.unlearning.methods.simnpo import SimNpo
from fedsim.unlearning.protocol import MethodConfig

METHODS: dict[str, type[MethodConfig]] = {
    "retrain": Retrain,
    "grad_ascent": GradAscent,
    "grad_diff": GradDiff,
    "npo": Npo,
    "simnpo": SimNpo,
}

MethodChoice = Annotated[Retrain | GradAscent | GradDiff | Npo | SimNpo, Field(discriminator="method")]
