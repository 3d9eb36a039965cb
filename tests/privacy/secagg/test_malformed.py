"""Malformed, replayed, swapped and corrupted messages of secure aggregation: a typed error each, or the fault
of one client; never a wrong sum."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.contexts import ClientContext, RoundContext
from privacy.errors import MalformedMessage, RoundAborted, SumUnusable
from privacy.secagg.messages import encode, pack, rows, unpack
from privacy.secagg.protocol import ALIVE, DROPPED, REQUEST, SHARES, checksum
from privacy.secagg.roster import Keys, encode_advert
from privacy.transport import Payload
from tests.privacy.rounds import HERE, Round, masked_pipeline, random_updates, run_round, secret

COUNT = 5


@pytest.fixture
def running():
    return Round(masked_pipeline(), random_updates(COUNT, 6))


def without(running, *names):
    """The sum that the others have."""
    rest = {n: u for n, u in running.updates.items() if n not in names}
    return run_round(masked_pipeline(), rest).update.tobytes()


def finish(running, *, adverts=None, shares=None, payloads=None, answers=None):
    """Run to the end, with a function that tampers with the messages of a step."""
    server = running.server
    roster = server.collect((adverts or dict)(running.adverts()))
    deliveries = server.deliver((shares or dict)(running.shares(roster)))
    requests = server.receive((payloads or dict)(running.payloads(deliveries)))
    return server.aggregate((answers or dict)(running.answers(requests)))


# ------------------------------------------------------------- faults of one client, step by step

ELSEWHERE = [{"round_id": 2}, {"branch": "leave"}, {"attempt": 1}]
DAMAGE = [lambda m: m[:-1], lambda m: m + b"x", lambda m: b"", lambda m: b"X" + m[1:]]


def later(name, where):
    """What the same client says elsewhere."""
    return (
        masked_pipeline()
        .client(ClientContext(client=name, secret=secret(name, *HERE.values()), **{**HERE, **where}))
        .advertise()
    )


@pytest.mark.parametrize("mutate", DAMAGE)
@pytest.mark.parametrize("step", ["adverts", "shares", "answers"])
def test_a_damaged_message_is_its_senders_fault(running, step, mutate):
    result = finish(running, **{step: lambda said: said | {"c001": mutate(said["c001"])}})
    assert set(result.rejected) == {"c001"}
    gone = () if step == "answers" else ("c001",)
    assert result.update.tobytes() == without(running, *gone)


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_replayed_advert_is_refused(running, where):
    result = finish(running, adverts=lambda said: said | {"c001": later("c001", where)})
    assert "another session, round, attempt" in result.rejected["c001"]
    assert result.update.tobytes() == without(running, "c001")


@pytest.mark.parametrize("step", ["adverts", "shares", "answers"])
def test_swapped_messages_are_refused(running, step):
    def swap(said):
        return said | {"c000": said["c001"], "c001": said["c000"]}

    result = finish(running, **{step: swap})
    assert set(result.rejected) == {"c000", "c001"}
    gone = () if step == "answers" else ("c000", "c001")
    assert result.update.tobytes() == without(running, *gone)


def test_strangers_are_not_heard(running):
    stranger = masked_pipeline().client(ClientContext(client="zed", **HERE))
    result = finish(
        running,
        adverts=lambda said: said | {"zed": stranger.advertise()},
        shares=lambda said: said | {"zed": said["c000"]},
        payloads=lambda said: said | {"zed": said["c000"]},
        answers=lambda said: said | {"zed": said["c000"]},
    )
    assert set(result.rejected) == {"zed"}
    assert result.update.tobytes() == without(running)


@pytest.mark.parametrize("key", ["masks", "shares"])
def test_keys_of_small_order_are_refused(running, key):
    def weak(said):
        _, masks, shares = unpack(said["c001"][36:])
        keys = replace(Keys(masks=masks, shares=shares), **{key: bytes(32)})
        return said | {"c001": encode_advert(said["c001"][4:36], "c001", keys)}

    result = finish(running, adverts=weak)
    assert "no valid X25519 key" in result.rejected["c001"]
    assert result.update.tobytes() == without(running, "c001")


def test_whoever_has_anothers_key_is_out_and_so_is_the_other(running):
    def stolen(said):
        _, masks, shares = unpack(said["c000"][36:])
        return said | {"c001": encode_advert(said["c001"][4:36], "c001", Keys(masks=masks, shares=shares))}

    result = finish(running, adverts=stolen)
    assert set(result.rejected) == {"c000", "c001"}
    assert result.update.tobytes() == without(running, "c000", "c001")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: Payload(array=p.array[:-1], fields=p.fields),
        lambda p: Payload(array=p.array.astype(np.float32), fields=p.fields),
        lambda p: Payload(array=p.array + np.uint32(1), fields=p.fields),
        lambda p: replace(p, fields={**p.fields, "client": "c001"}),
        lambda p: replace(p, fields={**p.fields, "roster": "00" * 32}),
        lambda p: replace(p, fields={"client": "c000"}),
    ],
    ids=["short", "float", "altered", "another client", "another roster", "no fields"],
)
def test_a_payload_that_cannot_be_used_counts_as_a_dropout(running, change):
    result = finish(running, payloads=lambda said: said | {"c000": change(said["c000"])})
    assert set(result.rejected) == {"c000"}
    assert result.update.tobytes() == without(running, "c000")


def test_a_payload_of_an_earlier_round_cannot_be_replayed(running):
    earlier = Round(running.pipeline, running.updates, here={**HERE, "round_id": 2})
    old = earlier.payloads(earlier.delivered())["c000"]
    result = finish(running, payloads=lambda said: said | {"c000": old})
    assert "another client, round or attempt" in result.rejected["c000"]
    assert result.update.tobytes() == without(running, "c000")


def test_a_corrupted_share_is_found_and_done_without(running):
    def corrupt(said):
        head, fields = said["c003"][:36], unpack(said["c003"][36:])
        fields[2] = bytes([fields[2][0] ^ 1]) + fields[2][1:]
        return said | {"c003": encode(head[:4], head[4:], fields)}

    running.drops = {"c004": "after_masking"}
    result = finish(running, answers=corrupt)
    assert result.rejected == {"c003": "tells another share than client 'c000' dealt"}
    assert result.update.tobytes() == without(running, "c004")


def test_a_sealed_share_that_was_damaged_on_the_way_is_done_without(running):
    def damage(said):
        head, fields = said["c000"][:36], unpack(said["c000"][36:])
        place = fields.index("c002") + 1
        fields[place] = fields[place][:-1] + bytes([fields[place][-1] ^ 1])
        return said | {"c000": encode(head[:4], head[4:], fields)}

    result = finish(running, shares=damage)
    assert result.rejected == {}
    assert result.update.tobytes() == without(running)


def tampered_shares(said, name, place, value):
    """One client's message of shares with a part of every holder's row replaced: 1 sealed, 2 and 3
    digests."""
    head, fields = said[name][:36], unpack(said[name][36:])
    for row in range(2, len(fields), 4):
        if fields[row] != name:
            fields[row + place] = value
    return said | {name: encode(head[:4], head[4:], fields)}


@pytest.mark.parametrize(("place", "value"), [(1, b"junk"), (2, bytes(32)), (3, bytes(32))])
def test_shares_that_nobody_can_use_are_their_dealers_fault_before_anything_is_told(running, place, value):
    """No holder is blamed, and the round can go on without the dealer."""
    with pytest.raises(RoundAborted, match="usable shares") as found:
        finish(running, shares=lambda said: tampered_shares(said, "c000", place, value))
    assert not isinstance(found.value, SumUnusable)
    assert set(running.server.rejected) == {"c000"}
    rest = {n: u for n, u in running.updates.items() if n != "c000"}
    again = run_round(running.pipeline, rest, here={**HERE, "attempt": 1})
    assert again.contributors == tuple(rest)


@pytest.mark.parametrize("said", [["c009"], ["c000"], [7]], ids=["a stranger", "itself", "a number"])
def test_complaints_of_what_is_not_held_are_their_senders_fault(running, said):
    def complain(payloads):
        payload = payloads["c000"]
        fields = {**payload.fields, "damaged": pack(said).hex()}
        return payloads | {"c000": replace(payload, fields=fields)}

    result = finish(running, payloads=complain)
    assert set(result.rejected) == {"c000"}
    assert result.update.tobytes() == without(running, "c000")


@pytest.mark.parametrize("secret_kind", [0, 1], ids=["mask key", "seed"])
def test_a_client_that_deals_wrong_shares_is_named_and_nothing_comes_out(running, secret_kind):
    """Its shares agree with what it committed to, but give another secret."""

    def lie(party, broadcast):
        real = party.channel._shares
        party.channel._shares = lambda kind, value: real(
            kind, bytes(32) if kind == ("mask key", "self seed")[secret_kind] else value
        )
        return party.share(broadcast)

    if secret_kind == 0:
        running.drops = {"c001": "after_masking"}
    roster = running.server.collect(running.adverts())
    said = running.shares(roster)
    del running.memory["c001"]
    running.say("c001", lambda party: party.advertise())
    said["c001"] = running.say("c001", lambda party: lie(party, roster))
    requests = running.server.receive(running.payloads(running.server.deliver(said)))
    with pytest.raises(SumUnusable, match="client 'c001' shared another") as found:
        running.server.aggregate(running.answers(requests))
    assert set(running.server.rejected) == {"c001"}
    assert set(found.value.contributors) == set(running.updates) - set(running.drops)


def test_masks_that_do_not_cancel_are_noticed(running):
    noise = np.random.default_rng(0).integers(0, 2**32, 8, dtype=np.uint32) | np.uint32(1)

    def spoil(said):
        array = said["c000"].array + noise
        return said | {"c000": Payload(array=array, fields={**said["c000"].fields, "check": checksum(array)})}

    with pytest.raises(SumUnusable, match="did not cancel"):
        finish(running, payloads=spoil)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bits_anywhere_never_give_a_wrong_sum(data):
    """One message of one client or of the server is damaged: the sum is that of its contributors, or none."""
    running = Round(masked_pipeline(), random_updates(COUNT, 6))
    step = data.draw(st.sampled_from(["adverts", "shares", "answers", "roster", "deliveries", "requests"]))
    victim = data.draw(st.sampled_from(sorted(running.updates)))

    def damaged(message):
        position = data.draw(st.integers(0, len(message) - 1))
        if data.draw(st.booleans()):
            return message[:position]
        return (
            message[:position]
            + bytes([message[position] ^ data.draw(st.integers(1, 255))])
            + message[position + 1 :]
        )

    def hit(name, said):
        return said | {victim: damaged(said[victim])} if step == name and victim in said else said

    def tried(what, said):
        """What the clients answer; one that raises a typed error falls silent."""
        answers = {}
        for name, message in said.items():
            try:
                answers[name] = running.say(name, lambda party, n=name, m=message: what(party, n, m))
            except RoundAborted:
                assert name == victim or step == "shares", "only the one that was lied to may object"
        return answers

    server = running.server
    try:
        roster = server.collect(hit("adverts", running.adverts()))
        rosters = {n: roster for n in running.updates if n not in server.rejected}
        shares = tried(lambda party, n, m: party.share(m), hit("roster", rosters))
        deliveries = hit("deliveries", dict(server.deliver(hit("shares", shares))))
        payloads = tried(lambda party, n, m: running.prepare(party, n, {n: m}), deliveries)
        requests = hit("requests", dict(server.receive(payloads)))
        answers = tried(lambda party, n, m: party.unmask(m), requests)
        result = server.aggregate(hit("answers", answers))
    except RoundAborted:
        return
    there = {n: running.updates[n] for n in result.contributors}
    assert np.array_equal(result.update, run_round(masked_pipeline(), there).update)
    assert len(there) >= COUNT - 1


# ----------------------------------------------------------------------- a server that lies


def asked(running, name):
    """A client that has masked, the request it would get, and a way to ask it another."""
    requests = running.received()
    fates = dict(rows(unpack(requests[name][36:]), str, str))

    def again(changed):
        place = requests[name][4:36]
        parts = [part for pair in sorted(changed.items()) for part in pair]
        return running.client(name).unmask(encode(REQUEST, place, parts))

    return fates, again


def test_never_both_kinds_of_share_of_one_client(running):
    fates, again = asked(running, "c000")
    assert set(fates.values()) == {ALIVE}
    running.say("c000", lambda party: party.unmask(_request(running, "c000", fates)))
    with pytest.raises(MalformedMessage, match="another request than before"):
        again(fates | {"c001": DROPPED})


def _request(running, name, fates):
    fingerprint = running.client(name).channel._roster.fingerprint
    return encode(REQUEST, fingerprint, [part for pair in sorted(fates.items()) for part in pair])


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 8), st.sampled_from([0.51, 0.6, 0.8]), st.data())
def test_a_server_that_tells_everybody_another_story_reads_nobody(count, threshold, data):
    """It picks for each client and each of its neighbours a fate; of no client does it get both secrets."""
    running = Round(masked_pipeline(threshold=threshold), random_updates(count, 4))
    asked_of = {name: rows(unpack(message[36:]), str, str) for name, message in running.received().items()}
    got = {name: {ALIVE: 0, DROPPED: 0} for name in running.updates}
    for name, fates in asked_of.items():
        story = {
            other: ALIVE if other == name else data.draw(st.sampled_from([ALIVE, DROPPED]))
            for other, _ in fates
        }
        try:
            running.say(name, lambda party, n=name, s=story: party.unmask(_request(running, n, s)))
        except RoundAborted:
            continue
        for other, fate in story.items():
            got[other][fate] += 1
        opposite = {o: f if o == name else (DROPPED if f == ALIVE else ALIVE) for o, f in story.items()}
        if opposite != story:
            with pytest.raises(RoundAborted):
                running.client(name).unmask(_request(running, name, opposite))
    needed = running.pipeline.channel.terms.shares_needed(count)
    assert not any(seen[ALIVE] >= needed and seen[DROPPED] >= needed for seen in got.values())


def test_no_two_groups_of_holders_can_both_be_enough(running):
    """Half of a client's holders told one story, half the other: at most one secret comes out."""
    terms = running.pipeline.channel.terms
    for holders in range(1, 60):
        needed = terms.shares_needed(holders)
        assert 2 * needed > holders
        assert needed <= holders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c000": DROPPED}, "not about those"),
        ({"zed": ALIVE}, "not about those"),
        ({"c001": "asleep"}, "neither alive nor dropped"),
        ({"c001": DROPPED, "c002": DROPPED, "c003": DROPPED}, "fewer than 3"),
    ],
    ids=["itself dropped", "a stranger", "an unknown fate", "too few alive"],
)
def test_requests_that_a_client_refuses(running, change, message):
    fates, again = asked(running, "c000")
    with pytest.raises(RoundAborted, match=message):
        again(fates | change)


def test_a_client_goes_by_one_roster_and_masks_one_update(running):
    roster = running.server.collect(running.adverts())
    shares = running.shares(roster)
    deliveries = running.server.deliver(shares)
    few = {n: m for n, m in running.adverts().items() if n != "c004"}
    other = running.pipeline.open_round(RoundContext(cohort=list(running.updates), **HERE)).collect(few)
    with pytest.raises(MalformedMessage, match="another roster"):
        running.client("c000").share(other)
    running.payloads(deliveries)
    running.updates["c000"] = running.updates["c000"] * 2
    with pytest.raises(MalformedMessage, match="another contribution"):
        running.prepare(running.client("c000"), "c000", deliveries)


def test_a_roster_without_me_or_with_a_foreign_key(running):
    roster = running.server.collect(running.adverts())
    with pytest.raises(MalformedMessage, match="does not list"):
        running.pipeline.client(ClientContext(client="c000", secret=bytes(32), **HERE)).share(roster)
    late = running.pipeline.client(ClientContext(client="c000", secret=secret("x"), **{**HERE, "attempt": 1}))
    with pytest.raises(MalformedMessage, match="round, attempt"):
        late.share(roster)


def test_steps_out_of_order(running):
    server = running.server
    for step in (server.deliver, server.receive, server.aggregate):
        with pytest.raises(RoundAborted):
            step({})
    adverts = running.adverts()
    roster = server.collect(adverts)
    with pytest.raises(RoundAborted, match="already"):
        server.collect(adverts)
    with pytest.raises(RoundAborted, match="left out"):
        running.client("c000").unmask(b"")
    with pytest.raises(RoundAborted, match="left out"):
        running.prepare(running.client("c000"), "c000", {})
    shares = running.shares(roster)
    server.deliver(shares)
    with pytest.raises(RoundAborted, match="repeated"):
        server.deliver(shares)


def test_shares_are_read_by_their_holder_alone(running):
    roster = running.server.collect(running.adverts())
    shares = running.shares(roster)
    fields = unpack(shares["c000"][36:])
    assert fields[2::4] == sorted(running.updates), "holders in order, each followed by its sealed shares"
    fields[7], fields[11] = fields[11], fields[7]
    swapped = encode(SHARES, shares["c000"][4:36], fields)
    deliveries = running.server.deliver(shares | {"c000": swapped})
    party = running.client("c001")
    running.prepare(party, "c001", deliveries)
    assert party.channel._held["c000"] == (b"", b""), "sealed for another, so not to be read"
    assert all(len(share) == 66 for share in party.channel._held["c002"])


@pytest.mark.parametrize("other", [{"threshold": 0.8}, {"neighbours": 6}])
def test_a_client_on_other_terms_has_other_keys_and_is_left_out(running, other):
    """A server that asks for fewer shares than its clients agreed to finds no keys of theirs."""

    def swapped(adverts):
        party = masked_pipeline(**other).client(
            ClientContext(client="c001", secret=secret("c001", *HERE.values()), **HERE)
        )
        assert set(party.advertise().split(b"c001")).isdisjoint(adverts["c001"].split(b"c001"))
        return adverts | {"c001": party.advertise()}

    result = finish(running, adverts=swapped)
    assert set(result.rejected) == {"c001"}
    assert "another session, round, attempt or roster" in result.rejected["c001"]
    assert result.update.tobytes() == without(running, "c001")
