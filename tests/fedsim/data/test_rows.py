"""Reading JSON lines with distrust: encodings, keys, half characters, nesting, blanks."""

import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.rows import is_blank, read_rows, shown

LINE = '{"question": "Où?", "answer": "à Orléans"}'
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def stored(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    return path


def refusal(path):
    with pytest.raises(ValueError, match=r"mine\.jsonl") as caught:
        list(read_rows(path))
    return str(caught.value)


@given(fields=st.dictionaries(TEXT, TEXT, min_size=1), ascii_=st.booleans(), mark=st.booleans())
def test_what_json_writes_is_read_back(tmp_path_factory, fields, ascii_, mark):
    content = json.dumps(fields, ensure_ascii=ascii_).encode()
    path = stored(tmp_path_factory.mktemp("rows"), (codecs.BOM_UTF8 if mark else b"") + content + b"\n")
    (row,) = read_rows(path)
    assert row.fields == fields


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_count_from_one_whatever_ends_them(tmp_path, end):
    path = stored(tmp_path, end.join([LINE, "", LINE, ""]).encode())
    assert [row.line for row in read_rows(path)] == [1, 3]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "mine.jsonl:1: the file is in UTF-16"),
        ("utf-16-le", "mine.jsonl:1: the file is in UTF-16LE"),
        ("utf-16-be", "mine.jsonl:1: the file is in UTF-16BE"),
        ("utf-32", "mine.jsonl:1: the file is in UTF-32"),
        ("utf-32-le", "mine.jsonl:1: the file is in UTF-32"),
        ("latin-1", "mine.jsonl:2: byte 0xf9 at column 16 is not UTF-8; the file looks like Latin-1"),
    ],
)
def test_other_encodings_are_named_with_file_and_line(tmp_path, encoding, said):
    path = stored(tmp_path, f'{{"question": "Q", "answer": "A"}}\n{LINE}\n'.encode(encoding))
    message = refusal(path)
    assert said in message
    assert "iconv -f" in message


def test_windows_quotes_tell_their_encoding(tmp_path):
    message = refusal(stored(tmp_path, '{"question": "“Où?”", "answer": "A"}'.encode("cp1252")))
    assert "looks like Windows-1252" in message
    assert "“Où?”" in message


def test_a_damaged_character_in_a_utf8_file_is_not_called_latin(tmp_path):
    message = refusal(stored(tmp_path, LINE.encode() + b'\n{"question": "O\xc3", "answer": "A"}\n'))
    assert ":2: byte 0xc3 at column 16" in message
    assert "cut or damaged" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": "1", "b": "2", "a": "3"}', ":1: key 'a' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', ":1: key 'b' stands twice"),
        (r'{"a": "x\ud83d y"}', r":1: column 'a' holds half a character, \ud83d at position 2"),
        (r'{"a": ["x", "\uDE00"]}', r":1: column 'a' holds half a character, \ude00 at position 1"),
        (r'{"a\ud83d": "x"}', "holds half a character"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", ":1: nested too deeply"),
        ('{"a": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001, ":1: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", ":1: a number cannot be read"),
        ("null", ":1: 'null' must be a JSON object"),
        ('{"a": 1} {"a": 2}', ":1: not JSON (Extra data at column 10)"),
    ],
)
def test_lines_that_cannot_be_meant_are_refused(tmp_path, line, said):
    assert said in refusal(stored(tmp_path, line.encode()))


def test_a_whole_emoji_in_escapes_is_read(tmp_path):
    (row,) = read_rows(stored(tmp_path, rb'{"a": "\ud83d\ude00"}'))
    assert row.text("a") == "\N{GRINNING FACE}"


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "mine.jsonl").mkdir()
    assert "it is a folder" in refusal(tmp_path / "mine.jsonl")


@pytest.mark.parametrize("text", ["", " ", "\u00a0", "\u200b\n", "\u2060", "\x00"])
def test_what_shows_nothing_is_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", " \u0301", "中", "\N{GRINNING FACE}", "."])
def test_what_shows_something_is_not_blank(text):
    assert not is_blank(text)


def test_a_value_of_any_depth_can_be_shown():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "(a deeply nested list)"
