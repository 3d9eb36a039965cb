"""Clients' names: numbers that are ids, others by place, and one client in two spellings."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.names import ClientNames, Speller, tidy
from fedsim.data.rows import Row


def read_all(tmp_path, *names):
    speller = Speller(column="client")
    return [
        speller.read(Row(path=tmp_path / "d.jsonl", line=k, fields={"client": name}))
        for k, name in enumerate(names, 1)
    ]


@given(st.lists(st.integers(0, 999_999), unique=True, min_size=1))
def test_numbers_are_their_own_ids(numbers):
    names = ClientNames.of([str(number) for number in numbers])
    assert names.by_id == {number: str(number) for number in numbers}
    assert list(names.by_id) == sorted(numbers)
    assert names.are_numbers


@pytest.mark.parametrize(
    "listed", [["b", "a"], ["2", "a"], ["01", "02"], ["1000000", "3"], ["-1", "1"], ["٣", "4"]]
)
def test_other_names_are_numbered_by_place(listed):
    names = ClientNames.of(listed)
    assert names.by_id == {0: listed[0], 1: listed[1]}
    assert not names.are_numbers


def test_a_client_that_is_not_listed_is_called_by_its_number():
    assert ClientNames().text(3) == "client 3"
    assert ClientNames.of(["clinic-a"]).text(0) == "client clinic-a"


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("José", "Jose\u0301", "NFC and NFD"),
        ("José", "José ", "spaces"),
        ("St  Ann", "St Ann", "spaces"),
        ("St\u00a0Ann", "St Ann", "spaces"),
        ("clinic", "cli\u200bnic", "invisible characters"),
        (1, "01", "leading zeros"),
    ],
)
def test_one_client_in_two_spellings_is_refused_with_both_lines(tmp_path, first, second, why):
    with pytest.raises(ValueError, match=rf"d.jsonl:3: client=.* is line 2's .*{why}.*nearest: '"):
        read_all(tmp_path, "other", first, second)


def test_a_number_and_its_digits_are_one_client(tmp_path):
    assert read_all(tmp_path, 3, "3", "a", "A") == ["3", "3", "a", "A"]


@given(st.text())
def test_a_tidy_name_is_tidy_in_every_form(name):
    assert tidy(tidy(name)) == tidy(name)
    assert tidy(unicodedata.normalize("NFD", name)) == tidy(name)
    assert tidy(f" {name}\n") == tidy(name)


@pytest.mark.parametrize("name", [True, 3.0, None, "", " "])
def test_a_client_without_a_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"d.jsonl:1: client="):
        read_all(tmp_path, name)
