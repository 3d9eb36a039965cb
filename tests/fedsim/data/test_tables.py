"""Rows of files: one table in every format is the same table, and what is none is refused."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.tables import columns_of, read_table

ROWS = [
    {"q": "Where, then?", "a": 'In "Oslo"', "n": "007"},
    {"q": "Two\nlines", "a": "é😀", "n": None},
]
WRITERS = {
    "t.jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "lines.json": lambda path, rows: path.write_text("\n\n".join(map(json.dumps, rows))),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "t.parquet": lambda path, rows: pa.parquet.write_table(pa.Table.from_pylist(rows), path),
    "t.csv": lambda path, rows: pa.csv.write_csv(pa.Table.from_pylist(rows), path),
    "t.TSV": lambda path, rows: pa.csv.write_csv(
        pa.Table.from_pylist(rows), path, pa.csv.WriteOptions(delimiter="\t")
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_the_same_in_every_format(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    rows = read_table(tmp_path / name)
    assert [dict(row.fields) for row in rows] == ROWS
    assert columns_of(rows) == ["q", "a", "n"]


CELLS = st.text(
    st.characters(codec="utf-8", exclude_characters="\r", categories=["L", "N", "P", "Z"]), min_size=1
)


@pytest.mark.parametrize("name", ["array.json", "t.parquet", "t.csv"])
@settings(deadline=None)
@given(cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory, name, cells):
    rows = [{"q": q, "a": a} for q, a in cells]
    path = tmp_path_factory.mktemp("t") / name
    WRITERS[name](path, rows)
    assert [dict(row.fields) for row in read_table(path)] == rows


def test_an_object_of_arrays_maps_clients_to_rows(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"u1": [{"i": "a"}, {"i": "b"}], "u2": [{"i": "c", "client": "x"}]}')
    rows = read_table(path)
    assert [dict(row.fields) for row in rows] == [
        {"client": "u1", "i": "a"}, {"client": "u1", "i": "b"}, {"client": "x", "i": "c"}]  # fmt: skip
    assert [row.line for row in rows] == [1, 2, 3]


def test_a_client_without_rows_and_texts_of_clients_are_read(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"u1": [{"i": "a"}], "u2": []}')
    assert [dict(row.fields) for row in read_table(path)] == [{"client": "u1", "i": "a"}]
    path.write_text('{"u1": ["one"], "u2": ["two"]}')
    assert [dict(row.fields) for row in read_table(path)] == [
        {"client": "u1", "text": "one"}, {"client": "u2", "text": "two"}]  # fmt: skip


def test_a_cell_may_hold_a_list(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,wrong\nParis,"[""Lyon"", ""Nice""]"\nRome,"[or so"\n')
    first, second = read_table(path)
    assert first.texts("wrong") == ("Lyon", "Nice")
    with pytest.raises(ValueError, match=r"t.csv: row 2: wrong='\[or so' must be a list of strings"):
        second.texts("wrong")


def test_a_conversation_alone_in_its_file_is_a_row(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"messages": [{"role": "user", "content": "Hello"}]}')
    assert [list(row.fields) for row in read_table(path)] == [["messages"]]


def test_texts_in_an_array_are_rows(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('["one", "two"]')
    assert [dict(row.fields) for row in read_table(path)] == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a", r"t.txt: ends in '.txt', and must be one of .json, .jsonl, .parquet"),
        ("t.json", "[1]", r"t.json: row 1: 1 must be an object"),
        ("t.json", "3", r"t.json: 3 must be an array of objects"),
        ("t.json", "[{]", r"t.json:1: not JSON"),
        ("t.json", '{"ana": [\n{"a": "b"},\n]}', r"t.json:3: not JSON .* an object of arrays"),
        ("t.json", '{"a": 1}\n{"a":', r"t.json:2: not JSON"),
        ("t.json", '[{"a": 1, "a": 2}]', r"key 'a' stands twice"),
        ("t.json", '[{"a": "\\ud83d"}]', r"t.json: row 1: column 'a' holds half a character"),
        ("t.json", "[]", r"t.json: has no rows"),
        ("t.csv", "a,b\n", r"t.csv: has no rows"),
        ("t.csv", "a,a\n1,2\n", r"t.csv:1: column 'a' stands twice"),
        ("t.csv", "a,b\n1,2,3\n", r"t.csv: cannot be read as CSV .*quote texts with commas"),
        ("t.parquet", "a", r"t.parquet: cannot be read as Parquet"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_rows_of_tables_are_counted_as_rows(tmp_path):
    """Line 3 of the file is row 2 of the table."""
    gap, numbers = tmp_path / "gap.csv", tmp_path / "numbers.json"
    gap.write_text("question,answer\nWho?,Me\nWhy?,\n")
    with pytest.raises(ValueError, match=r"gap.csv: row 2: answer=None .*write it, or leave the row out"):
        read_table(gap)[1].text("answer")
    numbers.write_text('[{"answer": 0}]')
    with pytest.raises(ValueError, match=r"row 1: answer=0 .*make the column one of texts"):
        read_table(numbers)[0].text("answer")


@pytest.mark.parametrize("name", ["t.json", "t.csv", "t.parquet"])
def test_a_file_that_is_not_there_names_the_nearest(tmp_path, name):
    (tmp_path / f"t2{name[1:]}").write_text("a")
    with pytest.raises(ValueError, match=r"no such file; nearest in that folder: 't2"):
        read_table(tmp_path / name)
