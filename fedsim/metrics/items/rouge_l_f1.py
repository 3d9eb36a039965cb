"""How alike the right answer and the greedy one are."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.arrays import FloatArray
from fedsim.metrics.metric import Answers, Metric


class RougeF1(Metric):
    """ROUGE-L F1: ROUGE-L F1 of the greedy answer."""

    name: ClassVar[str] = "rouge_l_f1"
    title: ClassVar[str] = "ROUGE-L F1"
    summary: ClassVar[str] = "ROUGE-L F1 of the greedy answer"
    reads_text: ClassVar[bool] = True

    @staticmethod
    def compute(answers: Answers) -> FloatArray | None:
        import numpy as np

        from fedsim.metrics.rouge import rouge

        pairs = zip(answers.right, answers.said, strict=True)
        return np.array([rouge(right, said).rouge_l_f1 for right, said in pairs])
