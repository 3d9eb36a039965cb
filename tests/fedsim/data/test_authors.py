"""The embedded corpus: names, facts and phrasings that later claims about forgetting rest on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.bases.tiny_authors import authors_tokenizer
from fedsim.data.authors import (
    ANSWER_FORMS,
    MAX_HOLDOUT_AUTHORS,
    PUBLIC_AUTHORS,
    QUESTION_FORMS,
    RELATIONS,
    author_name,
    author_records,
    load_authors,
    pretraining_pairs,
)

TOKENIZER = authors_tokenizer()
indices = st.integers(min_value=0, max_value=MAX_HOLDOUT_AUTHORS - 1)


def tokens(text: str) -> list[str]:
    return TOKENIZER.tokenize(" " + text)


def test_an_author_by_hand():
    record = author_records("author", 31)[0]
    assert record.record_id == "author-0031/birthplace"
    assert record.subject == "author-0031"
    assert record.question == f"What is the birthplace of {author_name('author', 31)}?"
    assert record.answer == f"The birthplace is {record.fact}"


def test_clients_take_consecutive_authors():
    corpus = load_authors(clients=2, authors_per_client=3)
    assert sorted(corpus.clients) == [0, 1]
    subjects = list(dict.fromkeys(record.subject for record in corpus.clients[1]))
    assert subjects == ["author-0003", "author-0004", "author-0005"]


@settings(max_examples=20, deadline=None)
@given(clients=st.integers(1, 30), more=st.integers(1, 30))
def test_an_author_is_the_same_whatever_else_is_loaded(clients, more):
    small = load_authors(clients=clients, holdout_authors=1, public_authors=1)
    large = load_authors(clients=clients + more, holdout_authors=2, public_authors=3)
    assert all(small.clients[client] == large.clients[client] for client in small.clients)
    assert large.holdout[: len(small.holdout)] == small.holdout


def test_names_are_unique_and_of_one_shape():
    names = [author_name("author", index) for index in range(3000)]
    names += [author_name("holdout", index) for index in range(500)]
    names += [author_name("public", index) for index in range(PUBLIC_AUTHORS)]
    assert len(set(names)) == len(names)
    assert {len(tokens(name)) for name in names} == {4}


@settings(max_examples=50, deadline=None)
@given(index=indices, group=st.sampled_from(["author", "holdout", "public"]))
def test_wrong_answers_match_in_form_and_differ_in_value(index, group):
    for record in author_records(group, index):
        answers = [record.paraphrased_answer, *record.perturbed_answers]
        assert len(set(answers)) == len(answers) == 5
        assert len({len(tokens(answer)) for answer in answers}) == 1
        template = record.paraphrased_answer.removesuffix(record.fact)
        assert all(answer.startswith(template) for answer in record.perturbed_answers)


@settings(max_examples=50, deadline=None)
@given(index=indices, group=st.sampled_from(["author", "holdout", "public"]))
def test_the_fact_stands_at_the_end_and_once(index, group):
    for record in author_records(group, index):
        assert record.answer.count(record.fact) == 1
        assert record.answer.endswith(f" {record.fact}")


def test_reserved_phrasings_occur_in_no_training():
    def question_templates(relation, phrasings):
        return {relation.question(phrasing, "NAME") for phrasing in phrasings}

    def answer_templates(relation, phrasings):
        return {relation.answer(phrasing, "VALUE") for phrasing in phrasings}

    asked, told = set(), set()
    for relation in RELATIONS:
        asked |= question_templates(relation, [*relation.training_questions, (0, 0)])
        told |= answer_templates(relation, [*relation.training_answers, (0, 0)])
    for relation in RELATIONS:
        assert not asked & question_templates(relation, [relation.reserved_question])
        assert not told & answer_templates(relation, [relation.reserved_answer])


def test_base_pairs_use_training_templates_only_and_cover_all_words():
    authors = 60
    pairs = pretraining_pairs(authors)
    records = [record for index in range(authors) for record in author_records("public", index)]
    assert not {question for question, _ in pairs} & {r.paraphrased_question for r in records}
    assert not {answer for _, answer in pairs} & {r.paraphrased_answer for r in records}
    assert {(r.question, r.answer) for r in records} <= set(pairs)
    trained = {token for pair in pairs for text in pair for token in tokens(text)}
    templates = [form.format(noun=noun, name="", value="") for relation in RELATIONS
                 for noun in relation.nouns for form in QUESTION_FORMS + ANSWER_FORMS]  # fmt: skip
    assert {token for text in templates for token in tokens(text)} <= trained


def test_no_base_pair_speaks_of_a_private_or_holdout_author():
    names = {author_name(group, index) for group in ("author", "holdout") for index in range(200)}
    text = {question for question, _ in pretraining_pairs(60)}
    assert not any(name in question for name in names for question in text)


def test_values_are_spread_evenly():
    facts = [author_records("author", index)[2].fact for index in range(1000)]
    counts = [facts.count(value) for value in RELATIONS[2].values]
    # 1,000 draws from 20: mean 50, standard deviation 6.9; four of them either way.
    assert min(counts) > 22
    assert max(counts) < 78


@pytest.mark.parametrize(
    ("field", "number", "nearest"),
    [("clients", 0, 1), ("authors_per_client", -1, 1), ("holdout_authors", 10_001, 10_000),
     ("public_authors", 601, 600)],
)  # fmt: skip
def test_counts_outside_their_range_name_the_nearest(field, number, nearest):
    with pytest.raises(ValueError, match=rf"{field}={number} .*nearest: {nearest}$"):
        load_authors(**{"clients": 1, field: number})


def test_fewer_facts_are_the_first_ones() -> None:
    few, all_ = load_authors(clients=3, facts_per_author=4), load_authors(clients=3)
    for client in range(3):
        assert few.clients[client] == all_.clients[client][:4]
    assert len(few.holdout) == 4 * 20
