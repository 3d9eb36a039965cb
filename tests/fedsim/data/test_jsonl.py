"""JSON lines: whose records they are, and errors that name file and line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.jsonl import load_jsonl


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(client, question="Q?", answer="A", **more):
    return {"client": client, "question": question, "answer": answer, **more}


def test_named_clients_are_numbered_by_first_appearance(tmp_path):
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
    (record,) = corpus.clients[7]
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
        ({"client": "a", "question": "Q?", "anser": "A"}, r":2: column 'answer' is missing .* mean 'anser'"),
        (row("a", answer=""), r":2: answer='' must be a non-empty string"),
        (row("a", answer=3), r":2: answer=3 must be a non-empty string"),
        (row("a", fact="B"), r":2: fact='B' must be a substring"),
        (row("a", perturbed_answers="B"), r":2: perturbed_answers='B' must be a list of strings"),
        (row("a", perturbed_answers=["B", " "]), r":2: perturbed_answers\[1\]=' ' must be a non-empty"),
        (row("a", perturbed_answers=["B", "A"]), r":2: perturbed_answers\[1\]='A' is the right answer"),
        (row("a", perturbed_answer=["B"]), r":2: column 'perturbed_answer' is unknown .*: 'perturbed_a"),
        (row("a", answer="Jose\u0301 it is", fact="Jos\u00e9"), r":2: fact=.* Unicode forms differ"),
        (row("all"), r":2: client='all' stands for all clients"),
        (row("a\x07b"), r":2: client='a\\x07b' holds control characters"),
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


def test_a_column_can_be_left_aside_by_name(tmp_path):
    path = write(tmp_path / "mine.jsonl", row("a", source={"page": [1, [2]]}))
    assert load_jsonl(path, ignore_columns=("source",)).clients[0][0].answer == "A"
    with pytest.raises(ValueError, match=r":1: column 'source' is unknown"):
        load_jsonl(path)


@pytest.mark.parametrize("stem", ["holdout", "retain", "model", "forget:1", "client:0"])
def test_a_public_file_takes_no_other_tables_name(tmp_path, stem):
    clients = write(tmp_path / "mine.jsonl", row("a"))
    public = write(tmp_path / f"{stem}.jsonl", {"question": "Q?", "answer": "B"})
    assert list(load_jsonl(clients, public=public).public) == [f"public-{stem}"]


def test_record_ids_differ_between_files_of_one_stem(tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
    clients, holdout, public = (write(tmp_path / folder / "mine.jsonl", row(folder)) for folder in "abc")
    corpus = load_jsonl(clients, holdout=holdout, public=public)
    ids = [corpus.clients[0][0].record_id, corpus.holdout[0].record_id, corpus.public["mine"][0].record_id]
    assert ids == ["mine:1", "holdout-mine:1", "public-mine:1"]


def test_an_empty_holdout_file_is_refused(tmp_path):
    path, empty = write(tmp_path / "mine.jsonl", row("a")), write(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"none.jsonl: has no rows"):
        load_jsonl(path, holdout=empty)


@given(st.permutations(range(5)), st.booleans())
def test_a_client_called_by_a_number_is_that_number(tmp_path_factory, order, quoted):
    rows = [row(str(who) if quoted else who, answer=f"of {who}") for who in order]
    corpus = load_jsonl(write(tmp_path_factory.mktemp("data") / "mine.jsonl", *rows))
    assert {who: held[0].answer for who, held in corpus.clients.items()} == {k: f"of {k}" for k in range(5)}


def test_a_guess_at_an_encoding_is_made_only_where_it_reads_well(tmp_path):
    """Shift-JIS taken for Windows-1252 would read as garbage that nobody refuses."""
    file = tmp_path / "a.jsonl"
    line = '{"client": "a", "question": "東京はどこですか", "answer": "日本です"}\n'
    file.write_bytes(line.encode("shift-jis"))
    with pytest.raises(ValueError, match="convert it from the encoding that it is in"):
        load_jsonl(file)
    file.write_bytes('{"client": "a", "question": "Où est “Paris”?", "answer": "là"}\n'.encode("cp1252"))
    with pytest.raises(ValueError, match="looks like Windows-1252"):
        load_jsonl(file)
    file.write_bytes(line.encode() + line.encode()[:-10] + b"\n")
    with pytest.raises(ValueError, match="which the rest of the file is"):
        load_jsonl(file)
