"""Facts in ordinary English: the same facts, told otherwise, and what another base knows beside them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.authors import RELATIONS, author_name, author_records
from fedsim.data.config import AuthorsData
from fedsim.data.loading import load_corpus
from fedsim.data.phrasing import NATURAL

WORLD = Path(__file__).parents[3] / "scenarios" / "facts" / "world.jsonl"


def test_every_relation_has_words_of_its_own() -> None:
    assert list(NATURAL) == [relation.name for relation in RELATIONS]
    questions = [text for one in NATURAL.values() for text in (one.question, one.other_question)]
    assert len(set(questions)) == len(questions)


@given(st.integers(0, 5000))
def test_the_facts_are_those_of_the_plain_words(index: int) -> None:
    name = author_name("author", index)
    pairs = zip(author_records("author", index), author_records("author", index, natural=True), strict=True)
    for plain, natural in pairs:
        assert (natural.record_id, natural.subject, natural.fact) == (
            plain.record_id,
            plain.subject,
            plain.fact,
        )
        assert natural.fact is not None
        assert natural.paraphrased_question is not None
        assert natural.paraphrased_answer is not None
        assert natural.fact in natural.answer
        assert natural.fact in natural.paraphrased_answer
        assert name in natural.question
        assert name in natural.paraphrased_question
        told = {natural.answer, natural.paraphrased_answer, *natural.perturbed_answers}
        assert len(told) == 6
        assert all(" a a" not in text and " a e" not in text and " a i" not in text for text in told)
        assert natural.question != plain.question


def test_a_file_stands_in_the_place_of_public_authors() -> None:
    corpus = load_corpus(AuthorsData(clients=2, phrasing="natural", public=WORLD), seed=1)
    (subject,) = corpus.public
    assert subject == "world"
    assert len(corpus.public["world"]) >= 60
    assert all(record.fact is not None and record.fact in record.answer for record in corpus.public["world"])
    assert len({record.question for record in corpus.public["world"]}) == len(corpus.public["world"])
    assert corpus.clients[0][0].question.startswith("In which town was ")
    assert corpus.holdout[0].question.startswith("In which town was ")


def test_a_public_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text('{"question": "Who?", "answer": "Nobody.", "fact": "Somebody"}\n')
    with pytest.raises(ValueError, match=r"known.jsonl:1: fact='Somebody' must be a substring"):
        load_corpus(AuthorsData(clients=1, public=file), seed=1)
