import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import MalformedMessage
from privacy.secagg.messages import digest
from privacy.secagg.roster import Keys, Roster, decode_advert, encode_advert

PLACE = bytes(32)


def keys_of(name):
    return Keys(masks=digest("masks", name), shares=digest("shares", name))


def roster_of(names):
    return Roster.build(PLACE, {name: keys_of(name) for name in names})


def test_an_advert_names_its_client():
    message = encode_advert(PLACE, "a", keys_of("a"))
    assert decode_advert(message, place=PLACE, client="a") == keys_of("a")
    with pytest.raises(MalformedMessage, match="another client"):
        decode_advert(message, place=PLACE, client="b")


def test_a_roster_comes_back_whatever_order_it_was_built_in():
    roster = roster_of("cab")
    again = Roster.from_bytes(roster.to_bytes(), place=PLACE)
    assert list(again.keys) == ["a", "b", "c"]
    assert again.fingerprint == roster.fingerprint
    assert roster.points() == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("same", ["masks", "shares", "across"])
def test_keys_are_used_once(same):
    a, b = keys_of("a"), keys_of("b")
    stolen = {
        "masks": Keys(masks=a.masks, shares=b.shares),
        "shares": Keys(masks=b.masks, shares=a.shares),
        "across": Keys(masks=b.masks, shares=b.masks),
    }[same]
    with pytest.raises(MalformedMessage, match="same public key"):
        Roster.build(PLACE, {"a": a, "b": stolen})


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.sampled_from([2, 4, 20]))
def test_neighbours_agree_and_everybody_is_connected(count, wanted):
    names = [f"c{index}" for index in range(count)]
    roster = roster_of(names)
    graph = {name: set(roster.neighbours(name, wanted)) for name in names}
    assert all(name in graph[peer] for name in names for peer in graph[name])
    assert all(name not in graph[name] for name in names)
    assert {len(peers) for peers in graph.values()} == {min(wanted, count - 1)}
    reached, frontier = set(), {names[0]}
    while frontier:
        reached |= frontier
        frontier = set().union(*(graph[name] for name in frontier)) - reached
    assert reached == set(names)
