"""Every unlearning method by name: one line each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.unlearning.grad_ascent import GradAscent
from fedsim.unlearning.grad_diff import GradDiff
from fedsim.unlearning.npo import Npo
from fedsim.unlearning.protocol import MethodConfig
from fedsim.unlearning.retrain import Retrain
from fedsim.unlearning.simnpo import SimNpo

METHODS: dict[str, type[MethodConfig]] = {
    "retrain": Retrain,
    "grad_ascent": GradAscent,
    "grad_diff": GradDiff,
    "npo": Npo,
    "simnpo": SimNpo,
}

MethodChoice = Annotated[Retrain | GradAscent | GradDiff | Npo | SimNpo, Field(discriminator="method")]
