"""ROUGE of a generated answer against the right one, through ``rouge-score``.

Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". TOFU reports ROUGE-L recall, MUSE
(Shi et al., 2024, arXiv:2407.06460) ROUGE-L F1. Plain English, foreign names in it included, is cut into
words and stemmed as TOFU's published evaluation does it, which knows a-z and 0-9 alone. All other text is cut
into Unicode words, unstemmed: letters with their marks, whatever the script; scripts without spaces one
character at a time.

>>> rouge("born in Paris", "She was born in Rome").rouge_l_recall
0.6666666666666666
>>> rouge("родился в Москве", "Он родился в Риме").rouge_l_recall
0.6666666666666666
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

ENGLISH = frozenset(
    {"the", "and", "with", "from", "that", "were", "their", "his", "he", "she", "they", "this", "which"}
    | {"has", "have", "had", "who", "by", "its", "known"}
)
"""Frequent words of English that few other languages share."""
FOREIGN = 0.15
"""Share of letters beyond ASCII that English text with foreign names may have."""
WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How the names of characters begin in scripts that put no spaces between words."""


class RougeScores(NamedTuple):
    """Each in [0, 1]; 1 when every word (recall), or every word and no other (F1), was said in order."""

    rouge_l_recall: float
    rouge_l_f1: float
    rouge_1_recall: float


@lru_cache(maxsize=1 << 16)
def rouge(reference: str, hypothesis: str) -> RougeScores:
    """Score one pair; ``reference`` is the right answer, ``hypothesis`` what the model said.

    Both are cut alike: as plain English if they are that, else into Unicode words. Pairs are cached: from one
    probe to the next most generations are the same. Edge cases: 0 when either text has no letters or digits.
    """
    scores = _scorer(is_plain_english(reference, hypothesis)).score(reference, hypothesis)
    return RougeScores(
        rouge_l_recall=float(scores["rougeL"].recall),
        rouge_l_f1=float(scores["rougeL"].fmeasure),
        rouge_1_recall=float(scores["rouge1"].recall),
    )


def is_plain_english(reference: str, hypothesis: str) -> bool:
    """Whether both texts are ASCII, or the right answer is English with a few foreign letters, as in names.

    One English word in an ASCII answer says so; in any other it takes two in both texts together, since one
    may belong to a name.

    >>> is_plain_english("It’s “here”", "no"), is_plain_english("ber", "über")
    (True, False)
    >>> is_plain_english("Émile Zola", "It is the author who is known as Émile Zola")
    True
    >>> is_plain_english("Её любимая группа — The Beatles", "And the Beatles")
    False
    """
    letters = [char for char in reference if _in_words(char)]
    foreign = sum(ord(char) > 127 for char in letters)
    if not foreign and not any(ord(char) > 127 and _in_words(char) for char in hypothesis):
        return True
    if not foreign:
        return bool(_english(reference))
    return foreign <= FOREIGN * len(letters) and len(_english(f"{reference} {hypothesis}")) > 1


def _english(text: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Za-z]+", text)} & ENGLISH


class UnicodeWords(Tokenizer):  # type: ignore[misc]  # the library has no types
    """Words of any script, case folded, in one normal form.

    >>> UnicodeWords().tokenize("Über-Straße, 東京!")
    ['über', 'strasse', '東', '京']
    """

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = []
        inside = False
        for char in unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold()):
            if not _in_words(char):
                inside = False
            elif _stands_alone(char):
                words.append(char)
                inside = False
            elif inside:
                words[-1] += char
            else:
                words.append(char)
                inside = True
        return words


@cache
def _in_words(char: str) -> bool:
    """Letters, marks and digits."""
    return unicodedata.category(char)[0] in "LMN"


@cache
def _stands_alone(char: str) -> bool:
    return unicodedata.category(char)[0] == "L" and unicodedata.name(char, "").startswith(WITHOUT_SPACES)


@cache
def _scorer(plain: bool) -> Any:
    names: Sequence[str] = ["rougeL", "rouge1"]
    return RougeScorer(names, use_stemmer=True) if plain else RougeScorer(names, tokenizer=UnicodeWords())
