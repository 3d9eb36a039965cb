"""TOFU's truth ratio R of each record."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class TruthRatio(Metric):
    """Truth ratio: wrong answers against the paraphrase; forget: min(R, 1/R), retain: max(0, 1 - R)."""

    name: ClassVar[str] = "truth_ratio"
    title: ClassVar[str] = "truth ratio"
    summary: ClassVar[str] = (
        "wrong answers against the paraphrase; forget: min(R, 1/R), retain: max(0, 1 - R)"
    )
    known_is_higher: ClassVar[bool] = False
    needs: ClassVar[str] = "wrong answers"

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        from fedsim.metrics.truth_ratio import truth_ratio

        return truth_ratio(answers.truth_I, answers.wrong_IW)
