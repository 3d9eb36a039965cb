"""ROUGE: cases by hand."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from fedsim.metrics.rouge import RougeScores, rouge


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


@pytest.mark.parametrize(
    ("right", "said", "recall"),
    [
        ("Он родился в Москве", "Он родился в Москве", 1.0),
        ("Он родился в Москве", "он родился в москве!", 1.0),
        ("東京", "東京", 1.0),
        ("東京都", "東京", 2 / 3),
        ("über", "ber", 0.0),
        ("ber", "über", 0.0),
        ("Straße", "STRASSE", 1.0),
        ("e\u0301te\u0301", "\u00e9t\u00e9", 1.0),  # marks behind letters, or letters with marks
        ("हिन्दी भाषा", "हिन्दी", 0.5),  # vowel signs are part of their word
        ("مرحبا بالعالم", "بالعالم مرحبا", 0.5),
        ("naïve café", "naive café", 0.5),
        ("Zoë, 1961", "zoë 1961", 1.0),
        ("Её любимая группа — The Beatles", "Его враг The Beatles", 2 / 5),  # a name's article is no English
        ("Она выросла в Москве", "The answer is known: Она", 1 / 4),
        ("Er wohnt in The Hague über Wasser", "ber The Hague", 2 / 7),
        (
            "He writes many novels",
            "He write many novel in café",
            1.0,
        ),  # stemmed whatever was said
        ("He writes many novels", "He write many novel in cafe", 1.0),
    ],
)
def test_words_of_any_script(right: str, said: str, recall: float) -> None:
    assert rouge(right, said).rouge_l_recall == pytest.approx(recall)


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_text_is_itself(text: str) -> None:
    """Whatever has letters or digits scores 1 against itself; nothing else has words at all."""
    has_words = any(unicodedata.category(char)[0] in "LMN" for char in text)
    assert rouge(text, text) == (RougeScores(1.0, 1.0, 1.0) if has_words else RougeScores(0.0, 0.0, 0.0))


@given(
    text=st.text(st.characters(codec="ascii"), max_size=60),
    other=st.text(st.characters(codec="ascii"), max_size=60),
)
def test_plain_english_is_scored_by_the_library_alone(text: str, other: str) -> None:
    """TOFU's published evaluation: the library's own words, stemmed."""
    scores = RougeScorer(["rougeL"], use_stemmer=True).score(text, other)
    assert rouge(text, other).rouge_l_recall == scores["rougeL"].recall
