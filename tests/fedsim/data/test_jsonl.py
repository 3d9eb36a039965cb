"""JSON lines: clients by first appearance, and errors that name file and line."""

import json

import pytest

from fedsim.data.jsonl import load_jsonl


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(client, question="Q?", answer="A", **more):
    return {"client": client, "question": question, "answer": answer, **more}


def test_clients_are_numbered_by_first_appearance(tmp_path):
    path = write(tmp_path / "mine.jsonl", row("b", "1?"), row("a", "2?"), "", row("b", "3?"))
    corpus = load_jsonl(path)
    assert {c: [r.question for r in rs] for c, rs in corpus.clients.items()} == {0: ["1?", "3?"], 1: ["2?"]}
    assert [record.record_id for record in corpus.clients[0]] == ["mine:1", "mine:4"]
    assert (corpus.holdout, dict(corpus.public)) == ((), {})


def test_columns_can_be_named_and_extras_are_read(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"who": 7, "q": "Where?", "a": "In Oslo", "fact": "Oslo", "subject": "s",
         "paraphrased_question": "At?", "paraphrased_answer": "Oslo it is",
         "perturbed_answers": ["Rome it is"]},
    )  # fmt: skip
    corpus = load_jsonl(path, client_column="who", question_column="q", answer_column="a")
    (record,) = corpus.clients[0]
    assert (record.subject, record.fact, record.perturbed_answers) == ("s", "Oslo", ("Rome it is",))
    assert (record.paraphrased_question, record.paraphrased_answer) == ("At?", "Oslo it is")


def test_holdout_and_public_need_no_client(tmp_path):
    path = write(tmp_path / "mine.jsonl", row("a"))
    other = write(tmp_path / "other.jsonl", {"question": "Q?", "answer": "A"})
    corpus = load_jsonl(path, holdout=other, public=other)
    assert corpus.holdout[0].record_id == "other:1"
    assert list(corpus.public) == ["other"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"mine.jsonl:2: not JSON"),
        ("[1]", r"mine.jsonl:2: '\[1\]' must be a JSON object"),
        ({"client": "a", "question": "Q?", "anser": "A"}, r":2: column 'answer' is missing; nearest"),
        (row("a", answer=""), r":2: answer='' must be a non-empty string"),
        (row("a", answer=3), r":2: answer=3 must be a non-empty string"),
        (row("a", fact="B"), r":2: fact='B' must be a substring"),
        (row("a", perturbed_answers="B"), r":2: perturbed_answers='B' must be a list of strings"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        load_jsonl(write(tmp_path / "mine.jsonl", row("a"), line))


def test_a_missing_file_names_its_nearest_neighbour(tmp_path):
    write(tmp_path / "mine.jsonl", row("a"))
    with pytest.raises(ValueError, match=r"mime.jsonl: no such file; nearest in that folder: 'mine.jsonl'"):
        load_jsonl(tmp_path / "mime.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no rows"):
        load_jsonl(write(tmp_path / "mine.jsonl"))
