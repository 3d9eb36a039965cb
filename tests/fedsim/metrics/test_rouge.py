"""ROUGE: cases by hand."""

import pytest

from fedsim.metrics.rouge import rouge


def test_by_hand() -> None:
    scores = rouge("the cat sat", "a cat then sat down")  # common subsequence: cat, sat
    assert scores.rouge_l_recall == pytest.approx(2 / 3)
    assert scores.rouge_l_f1 == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert scores.rouge_1_recall == pytest.approx(2 / 3)


def test_words_are_stemmed_and_order_matters_to_rouge_l_only() -> None:
    assert rouge("she writes books", "she writing book") == (1.0, 1.0, 1.0)
    scores = rouge("one two", "two one")
    assert (scores.rouge_l_recall, scores.rouge_1_recall) == (0.5, 1.0)


@pytest.mark.parametrize("pair", [("word", ""), ("", "word"), ("...", "...")])
def test_nothing_to_compare_scores_zero(pair: tuple[str, str]) -> None:
    assert rouge(*pair) == (0.0, 0.0, 0.0)
