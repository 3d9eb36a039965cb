"""How much of the answer a greedy model would say."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class ExactMemorisation(Metric):
    """Exact memorisation: share of answer tokens that are the argmax."""

    name: ClassVar[str] = "exact_memorisation"
    title: ClassVar[str] = "exact memorisation"
    summary: ClassVar[str] = "share of answer tokens that are the argmax"
    tracked: ClassVar[bool] = True
    headline: ClassVar[bool] = True

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.memorisation import exact_memorisation

        return exact_memorisation(answers.hits_IA, answers.mask_IA)
