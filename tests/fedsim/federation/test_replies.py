"""Replies that are not what was asked for: each is its sender's failure, and the round is that of the
others."""

import io
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fedsim.federation.client import CODES, INSTRUMENTS, PAYLOAD, UPDATE
from fedsim.federation.grid import CLIENT_STATE, client_of
from fedsim.federation.rounds import run_round
from fedsim.federation.strategies.registry import strategy_of
from fedsim.training.config import LocalConfig
from privacy import Ledger
from privacy.secagg.messages import encode, unpack
from privacy.secagg.protocol import SHARES
from tests.world import make_step, make_world, same

LIAR = 1
SPSA = LocalConfig(epochs=1, batch_size=2, lr=0.01, optimizer="spsa", max_grad_norm=None)
MASKED = [{"stage": "clip", "norm": 1.0}, {"stage": "secure_aggregation"}]
PRIVATE = [{"stage": "example_dp", "target_epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0}]
LOCALLY = [
    {"stage": "clip", "norm": 1.0},
    {"stage": "local_dp", "noise_multiplier": 1.0, "delta": 1e-3},
]


def play(model, start, lie=None, clients=(0, 1, 2, 3), **settings):
    """One round in which client 1 may lie: the federation and the outcome."""
    world = make_world(model, **{"weighting": "uniform", **settings})
    send = world.engine.grid.send_and_receive

    def tampered(messages, **rest):
        replies = send(messages, **rest)
        for reply in replies:
            if client_of(reply.metadata.src_node_id) == LIAR and reply.has_content() and lie is not None:
                lie(reply.content)
        return replies

    world.engine.grid.send_and_receive = tampered
    federation = world.federation()
    federation.adapter = {name: value.copy() for name, value in start.items()}
    return federation, run_round(federation, make_step(1, clients), "keep", world.engine)


def check_left_out(model, start, lie, why, **settings):
    federation, outcome = play(model, start, lie, **settings)
    without, _ = play(model, start, clients=(0, 2, 3), **settings)
    assert list(outcome.failures) == [LIAR]
    assert why in outcome.failures[LIAR]
    assert outcome.contributors == (0, 2, 3)
    assert same(federation.adapter, without.adapter)
    assert federation.ledger.to_json() == without.ledger.to_json()


def raw(data):
    def lie(content):
        if UPDATE in content.array_records:
            array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)
            content[UPDATE] = ArrayRecord({PAYLOAD: array})

    return lie


def archive() -> bytes:
    target = io.BytesIO()
    np.savez(target, a=np.ones(2))
    return target.getvalue()


HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04xx", archive(), HUGE.ljust(127) + b"\n"], ids=["none", "zip", "npz", "huge"]
)
def test_arrays_that_are_none(model, start, data):
    check_left_out(model, start, raw(data), "the reply")


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_bytes_of_more_or_fewer_steps_than_were_asked_for(model, start, count):
    def lie(content):
        if UPDATE in content.array_records:
            content[UPDATE] = ArrayRecord({CODES: Array(np.full(count, 127, np.uint8))})

    check_left_out(model, start, lie, "not asked for", local=SPSA)


@pytest.mark.parametrize("value", [5, 1.5, "text"])
def test_messages_that_are_no_bytes(model, start, value):
    def lie(content):
        if "setup" in content.config_records:
            content["setup"] = ConfigRecord({"message": value})

    check_left_out(model, start, lie, "no bytes", privacy=MASKED)


def test_shares_that_nobody_can_use(model, start):
    """Their holders say so before anything is unmasked; the round is repeated without the dealer."""

    def lie(content):
        said = content["setup"]["message"] if "setup" in content.config_records else b""
        if said[:4] == SHARES:
            fields = unpack(said[36:])
            for row in range(2, len(fields), 4):
                fields[row + 1] = fields[row + 1] if fields[row] == str(LIAR) else b"junk"
            content["setup"] = ConfigRecord({"message": encode(SHARES, said[4:36], fields)})

    check_left_out(model, start, lie, "dealt shares", privacy=MASKED)


def claimed(change):
    def lie(content):
        if CLIENT_STATE in content.config_records and "ledger" in content[CLIENT_STATE]:
            said = json.loads(content[CLIENT_STATE]["ledger"])
            change(said["releases"])
            content[CLIENT_STATE] = ConfigRecord({"ledger": json.dumps(said), "memory": b""})

    return lie


CLAIMS = {
    "nothing": lambda rows: rows.clear(),
    "fewer steps": lambda rows: rows[0].update(steps=rows[0]["steps"] + 1),
    "less noise": lambda rows: rows[0].update(noise_multiplier=9.0),
    "others": lambda rows: rows[0].update(clients=["2"]),
    "others too": lambda rows: rows.append({**rows[0], "clients": ["2"]}),
    "elsewhere": lambda rows: rows[0].update(branch="leave"),
    "another neighbour": lambda rows: rows[0].update(neighbours="zero_out"),
}


@pytest.mark.parametrize("privacy", [PRIVATE, LOCALLY], ids=["example_dp", "local_dp"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_charges_that_its_stages_do_not_make(model, start, claim, privacy):
    check_left_out(model, start, claimed(CLAIMS[claim]), "stages charge", privacy=privacy)


def test_charges_may_differ_by_rounding(model, start):
    def nudged(rows):
        rows[0]["noise_multiplier"] *= 1 + 1e-12

    federation, outcome = play(model, start, claimed(nudged), privacy=PRIVATE)
    assert outcome.failures == {}
    honest, _ = play(model, start, privacy=PRIVATE)
    assert honest.ledger.agrees_with(federation.ledger)
    assert not honest.ledger.agrees_with(Ledger())


def test_a_ledger_too_deep_to_read(model, start):
    def lie(content):
        if CLIENT_STATE in content.config_records and "ledger" in content[CLIENT_STATE]:
            content[CLIENT_STATE] = ConfigRecord({"ledger": "[" * 100_000, "memory": b""})

    check_left_out(model, start, lie, "the reply", privacy=PRIVATE)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("weight", [-3.0, 0.0, 1e300, 2.5, float("nan")])
def test_weights_that_are_not_the_clients_own(model, start, weight, weighting):
    def lie(content):
        if "fields" in content.config_records:
            content["fields"] = ConfigRecord({**content["fields"], "weight": weight})

    check_left_out(model, start, lie, "weight", weighting=weighting)


def test_instruments_that_say_nothing_leave_costs_unknown(model, start):
    def lie(content):
        if INSTRUMENTS in content.metric_records:
            content[INSTRUMENTS] = MetricRecord({"a": 1})

    _, outcome = play(model, start, lie)
    assert outcome.failures == {}
    assert (outcome.taken.steps, outcome.taken.tokens) == (None, None)


def replaced(array, key=PAYLOAD, also=None):
    def lie(content):
        if UPDATE in content.array_records:
            content[UPDATE] = ArrayRecord({key: Array(array), **(also or {})})

    return lie


FORMS = [
    np.array(1.0, np.float32),
    np.array(7, np.uint8),
    np.array(7, np.uint32),
    np.zeros((2, 2), np.float32),
    np.zeros((0, 3), np.float32),
]
PIPELINES = {
    "plain": {},
    "unsized": {"sized": False},
    "packed": {"privacy": [{"stage": "clip", "norm": 1.0}, {"stage": "compression", "method": "top_k"}]},
    "masked": {"privacy": MASKED},
    "spsa": {"local": SPSA},
    "median": {"strategy": strategy_of("fedmedian")},
}


@pytest.mark.parametrize("settings", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("array", FORMS, ids=[f"{a.dtype}{a.shape}" for a in FORMS])
def test_arrays_of_a_form_that_nobody_asked_for(model, start, array, settings):
    for key in (PAYLOAD, CODES):
        _, outcome = play(model, start, replaced(array, key), **settings)
        assert list(outcome.failures) == [LIAR]
        assert "not a vector" in outcome.failures[LIAR]
        assert outcome.contributors == (0, 2, 3)


def test_more_arrays_than_were_asked_for(model, start):
    zeros = np.zeros(4, np.float32)
    lie = replaced(zeros, also={"more": Array(zeros)})
    check_left_out(model, start, lie, "arrays that nobody asked for: 'update', 'payload', 'more'")


def scaled(factor):
    def lie(content):
        if UPDATE in content.array_records:
            array = content[UPDATE][PAYLOAD].numpy()
            content[UPDATE] = ArrayRecord({PAYLOAD: Array(array * np.float32(factor))})

    return lie


CLIPPED = [{"stage": "clip", "norm": 1e-3}]
POISONED = {
    "plain": {"nominal": {"max_update_norm": 10.0}},
    "clip": {"privacy": CLIPPED},
    "local_dp": {"privacy": LOCALLY},
    "median": {"nominal": {"max_update_norm": 10.0}, "strategy": strategy_of("fedmedian")},
}


@pytest.mark.parametrize("settings", POISONED.values(), ids=POISONED)
def test_one_poisoned_update_is_left_out(model, start, settings):
    check_left_out_but_charged(model, start, scaled(1e30), "longer than the", **settings)


def check_left_out_but_charged(model, start, lie, why, **settings):
    """What a client sent was charged before anybody looked at how long it is."""
    federation, outcome = play(model, start, lie, **settings)
    without, _ = play(model, start, clients=(0, 2, 3), **settings)
    assert list(outcome.failures) == [LIAR]
    assert why in outcome.failures[LIAR]
    assert same(federation.adapter, without.adapter)


def test_behind_client_dp_a_poisoned_update_leaves_no_trace(model, start):
    privacy = [*CLIPPED, {"stage": "client_dp", "noise_multiplier": 1.0, "delta": 1e-3}]
    federation, outcome = play(model, start, scaled(1e30), privacy=privacy)
    assert "longer than the 0.001" in outcome.failures[LIAR]
    assert all(np.abs(federation.adapter[name] - start[name]).max() < 0.1 for name in start)


def test_a_weight_that_its_records_do_not_give(model, start):
    """Client 1 has 5 records and claims 8, which another may have."""

    def lie(content):
        if UPDATE in content.array_records:
            content["fields"] = ConfigRecord({**content["fields"], "weight": 7.0})

    check_left_out(model, start, lie, "a weight of 7.0, which is not its own", weighting="examples")


@pytest.mark.parametrize(("factor", "named"), [(50.0, LIAR), (1.0, None)])
def test_an_update_that_outweighs_the_others_is_named(model, start, factor, named):
    _, outcome = play(model, start, scaled(factor))
    assert (outcome.heaviest and outcome.heaviest.client) == named
