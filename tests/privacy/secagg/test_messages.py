import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import MalformedMessage
from privacy.secagg.messages import decode, encode, pack, rows, unpack

FIELDS = st.lists(st.text(max_size=5) | st.integers() | st.binary(max_size=5), max_size=5)


@given(FIELDS)
def test_what_is_packed_comes_back(fields):
    found = unpack(pack(fields))
    assert found == fields
    assert [type(item) for item in found] == [type(item) for item in fields]


@given(FIELDS, FIELDS)
def test_no_two_lists_look_alike(one, other):
    alike = [(type(item), item) for item in one] == [(type(item), item) for item in other]
    assert (pack(one) == pack(other)) == alike


@given(st.binary(max_size=40))
def test_other_bytes_are_refused_or_canonical(data):
    try:
        fields = unpack(data)
    except MalformedMessage:
        return
    assert pack(fields) == data


def test_a_message_belongs_to_one_place_and_step():
    message = encode(b"TEST", b"p" * 32, ["a", 1])
    assert decode(b"TEST", b"p" * 32, message) == ["a", 1]
    with pytest.raises(MalformedMessage, match="expected a ELSE"):
        decode(b"ELSE", b"p" * 32, message)
    with pytest.raises(MalformedMessage, match="another session"):
        decode(b"TEST", b"q" * 32, message)
    with pytest.raises(MalformedMessage, match="cannot be read"):
        decode(b"TEST", b"p" * 32, message[:-1])


def test_rows_have_the_types_that_were_asked_for():
    assert rows(["a", b"x", "b", b"y"], str, bytes) == [("a", b"x"), ("b", b"y")]
    with pytest.raises(MalformedMessage, match="whole rows"):
        rows(["a", b"x", "b"], str, bytes)
    with pytest.raises(MalformedMessage, match="str"):
        rows(["a", 3], str, bytes)
