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
        ("cam", "c\u0430m", "two alphabets"),
        ("\u0391lpha", "Alpha", "two alphabets"),
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


@given(st.lists(st.integers(0, 9999), unique=True, min_size=1))
def test_a_number_that_the_data_use_is_never_a_place(numbers):
    names = ClientNames.of([str(number) for number in numbers])
    assert [names.find(number) for number in numbers] == numbers
    for place in set(range(len(numbers))) - set(numbers):
        with pytest.raises(ValueError, match=f"client {place} is not in the data"):
            names.find(place)


@pytest.mark.parametrize("listed", [["2", "a"], ["01", "02"], ["a", "7"], ["1000000", "3"]])
@pytest.mark.parametrize("place", [0, 1, "0", "1"])
def test_where_a_client_is_called_by_a_number_no_number_counts_by_place(listed, place):
    with pytest.raises(ValueError, match=f"client {place} is not in the data"):
        ClientNames.of(listed).find(place)


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        ("Jose\u0301", [0]),
        (" José ", [0]),
        (1, [1]),
        ("1", [1]),
        ("0-2", [0, 1, 2]),
        ("1 - 2, José", [1, 2, 0]),
        ("2020-1", [3]),
        ("a, b", [2]),
        ("b", [1]),
        ("b, 2020-1", [1, 3]),
        ("all", [9]),
    ],
)
def test_a_whole_name_goes_before_what_its_parts_could_mean(written, ids):
    names = ClientNames.of(["José", "b", "a, b", "2020-1"])
    assert names.read([written], [9]) == tuple(ids)


def test_the_nearest_number_or_name_is_told():
    with pytest.raises(ValueError, match=r"has clients 2, 5 and 9; nearest is 9"):
        ClientNames.of(["2", "9", "5"]).find(100)
    with pytest.raises(ValueError, match=r"has clients clinic-a and ward; nearest is clinic-a"):
        ClientNames.of(["clinic-a", "ward"]).find("clinicA")
    with pytest.raises(ValueError, match=r"client 9{30} is not in the data"):
        ClientNames.of(["2", "9"]).find(int("9" * 30))
