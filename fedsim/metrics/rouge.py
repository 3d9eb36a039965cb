"""ROUGE of a generated answer against the right one, stemmed, through ``rouge-score``.

Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". TOFU reports ROUGE-L recall, MUSE
(Shi et al., 2024, arXiv:2407.06460) ROUGE-L F1.

>>> rouge("born in Paris", "She was born in Rome").rouge_l_recall
0.6666666666666666
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

from rouge_score.rouge_scorer import RougeScorer


class RougeScores(NamedTuple):
    """Each in [0, 1]; 1 when every word (recall), or every word and no other (F1), was said in order."""

    rouge_l_recall: float
    rouge_l_f1: float
    rouge_1_recall: float


@lru_cache(maxsize=1 << 16)
def rouge(reference: str, hypothesis: str) -> RougeScores:
    """Score one pair; ``reference`` is the right answer, ``hypothesis`` what the model said.

    Pairs are cached: from one probe to the next most generations are the same. Edge cases: 0 when either
    text has no letters or digits.
    """
    scores = _scorer().score(reference, hypothesis)
    return RougeScores(
        rouge_l_recall=float(scores["rougeL"].recall),
        rouge_l_f1=float(scores["rougeL"].fmeasure),
        rouge_1_recall=float(scores["rouge1"].recall),
    )


@cache
def _scorer() -> Any:
    return RougeScorer(["rougeL", "rouge1"], use_stemmer=True)
