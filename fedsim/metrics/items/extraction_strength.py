"""How much of the answer follows from its beginning."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class ExtractionStrength(Metric):
    """Extraction strength: how much of the answer follows from its beginning."""

    name: ClassVar[str] = "extraction_strength"
    title: ClassVar[str] = "extraction strength"
    summary: ClassVar[str] = "how much of the answer follows from its beginning"
    tracked: ClassVar[bool] = True
    headline: ClassVar[bool] = True

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.memorisation import extraction_strength

        return extraction_strength(answers.hits_IA, answers.mask_IA)
