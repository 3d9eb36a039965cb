"""The server holds updates to the bound that their stages declare, and weights to the counts it holds."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from privacy import (
    Ledger,
    Nominal,
    Payload,
    Pipeline,
    StageConfig,
    SumUnusable,
    build_pipeline,
)
from privacy.codecs import pack
from privacy.contexts import ClientContext, RoundContext
from privacy.errors import ClientUpdateError, PipelineError

SIZE = 12
HERE = {"round_id": 1, "branch": "main", "attempt": 0}
CLIP = {"stage": "clip", "norm": 0.5}
LOCAL = {"stage": "local_dp", "noise_multiplier": 1.0, "delta": 1e-3}
BOUNDED: dict[str, list[dict]] = {
    "clip": [CLIP],
    "quantile": [{**CLIP, "quantile": 0.5}],
    "client_dp": [CLIP, {"stage": "client_dp", "noise_multiplier": 1.0, "delta": 1e-3}],
    "top_k": [CLIP, {"stage": "compression", "method": "top_k"}],
    "ternary": [CLIP, {"stage": "compression", "method": "ternary"}],
    "quantise": [CLIP, {"stage": "compression", "method": "quantise"}],
    "one bit": [CLIP, {"stage": "compression", "method": "quantise", "bits": 1}],
    "local_dp": [CLIP, LOCAL],
    "local_dp, top_k": [CLIP, LOCAL, {"stage": "compression", "method": "top_k"}],
    "local_dp, quantise": [CLIP, LOCAL, {"stage": "compression", "method": "quantise"}],
}


def built(stages: Sequence[dict], weighting: str = "uniform", **nominal) -> Pipeline:
    configs = TypeAdapter(list[StageConfig]).validate_python(list(stages))
    worst = Nominal(max_cohort=5, max_weight=9.0, dimension=SIZE, **nominal)
    return build_pipeline(configs, nominal=worst, weighting=weighting)


def sent(pipeline: Pipeline, name: str, update: np.ndarray, seed: int, weight: float = 1.0) -> Payload:
    """What an honest client sends."""
    party = pipeline.client(
        ClientContext(client=name, generator=np.random.default_rng(seed), ledger=Ledger(), **HERE)
    )
    return party.prepare(update, weight=weight).payload


def received(pipeline: Pipeline, payloads: dict[str, Payload], **more):
    server = pipeline.open_round(
        RoundContext(
            cohort=sorted(payloads), ledger=Ledger(), generator=np.random.default_rng(0), **HERE, **more
        )
    )
    server.receive(payloads)
    return server.aggregate({})


def longer(pipeline: Pipeline, honest: Payload, factor: float) -> Payload:
    """The payload of a client that sends what its stages would have made, ``factor`` times as long as they
    may."""
    codec = pipeline.wires[-1].codec
    vector = honest.array if codec is None else codec.decode(honest.array)
    scaled = vector * np.float32(factor * pipeline.longest / np.linalg.norm(vector.astype(np.float64)))
    try:
        array = scaled if codec is None else pack(codec, scaled)
    except ClientUpdateError:  # it does not even fit into the codec's bytes
        array = scaled
    return Payload(array=array, fields=honest.fields)


updates = st.tuples(st.integers(0, 2**32), st.floats(-30, 30)).map(
    lambda drawn: (np.random.default_rng(drawn[0]).normal(size=SIZE) * 10.0 ** drawn[1]).astype(np.float32)
)


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=40, deadline=None)
@given(update=updates, seed=st.integers(0, 2**32))
def test_an_honest_client_is_never_too_long(name: str, update: np.ndarray, seed: int) -> None:
    pipeline = built(BOUNDED[name])
    payloads = {client: sent(pipeline, client, update, seed + place) for place, client in enumerate("abc")}
    assert received(pipeline, payloads).rejected == {}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("factor", [1.01, 10.0, 1e30])
def test_a_longer_update_is_its_senders_failure(name: str, factor: float) -> None:
    pipeline = built(BOUNDED[name])
    update = np.random.default_rng(3).normal(size=SIZE).astype(np.float32)
    payloads = {client: sent(pipeline, client, update, place) for place, client in enumerate("abc")}
    payloads["b"] = longer(pipeline, payloads["b"], factor)
    result = received(pipeline, payloads)
    assert list(result.rejected) == ["b"]
    assert result.contributors == ("a", "c")
    if pipeline.wires[-1].codec is None:
        assert "longer than the" in result.rejected["b"]


@pytest.mark.parametrize(("norm", "taken"), [(5.0, True), (4.9, False)])
def test_max_update_norm_by_hand(norm: float, taken: bool) -> None:
    """|(3, 4)| = 5."""
    pipeline = Pipeline(nominal=Nominal(max_update_norm=norm))
    update = np.float32([3.0, 4.0])
    payloads = {
        name: pipeline.client(ClientContext(client=name, **HERE)).prepare(update * scale).payload
        for name, scale in (("a", np.float32(1.0)), ("b", np.float32(0.1)))
    }
    server = pipeline.open_round(RoundContext(cohort=["a", "b"], **HERE))
    server.receive(payloads)
    result = server.aggregate({})
    assert result.contributors == (("a", "b") if taken else ("b",))
    assert ("a" in result.rejected) != taken
    assert result.lengths == pytest.approx({"a": 5.0, "b": 0.5} if taken else {"b": 0.5})


def test_max_update_norm_beside_a_bound_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"at 0\.5 already.*leave max_update_norm out"):
        built([CLIP], max_update_norm=1.0)


@pytest.mark.parametrize("claimed", [1.0, 4.0, 8.0, 5.0])
def test_weights_are_the_counts_that_the_server_holds(claimed: float) -> None:
    """Client b has 5 records; whatever else it claims is its failure."""
    pipeline = built([], weighting="examples")
    update = np.ones(SIZE, np.float32)
    payloads = {name: sent(pipeline, name, update, 0, weight) for name, weight in (("a", 3.0), ("b", 5.0))}
    payloads["b"] = Payload(array=payloads["b"].array, fields={**payloads["b"].fields, "weight": claimed})
    result = received(pipeline, payloads, counts={"a": 3.0, "b": 5.0})
    assert list(result.rejected) == ([] if claimed == 5.0 else ["b"])


def masked_round(scale: float, weights: dict[str, float], counts: dict[str, float]):
    """A round under masks in which client b's update is ``scale`` times as long as it may be."""
    pipeline = built([CLIP, {"stage": "secure_aggregation"}], weighting="examples")
    server = pipeline.open_round(RoundContext(cohort=list("abc"), counts=counts, **HERE))
    honest = np.ones(SIZE, np.float32) * np.float32(0.5 / np.sqrt(SIZE))
    parties = {
        name: pipeline.client(ClientContext(client=name, secret=bytes([place]) * 32, **HERE))
        for place, name in enumerate("abc")
    }
    roster = server.collect({name: party.advertise() for name, party in parties.items()})
    deliveries = server.deliver({name: party.share(roster) for name, party in parties.items()})
    payloads = {}
    for name, party in parties.items():
        stages = party.stages if name != "b" else ()
        update = honest * np.float32(scale if name == "b" else 1.0)
        object.__setattr__(party, "stages", stages)
        payloads[name] = party.prepare(update, weight=weights[name], delivery=deliveries[name]).payload
    requests = server.receive(payloads)
    return server.aggregate({name: parties[name].unmask(request) for name, request in requests.items()})


COUNTS = {"a": 3.0, "b": 5.0, "c": 1.0}


def test_a_masked_sum_that_is_too_long_is_not_used() -> None:
    """Up to 2^31 steps fit into a sum; 0.5 x 9 is what honest updates add up to."""
    assert masked_round(1.0, COUNTS, COUNTS).contributors == ("a", "b", "c")
    with pytest.raises(SumUnusable, match="longer than the"):
        masked_round(1.6, COUNTS, COUNTS)


def test_masked_weights_that_do_not_add_up_are_not_used() -> None:
    with pytest.raises(SumUnusable, match="what these clients hold"):
        masked_round(1.0, {**COUNTS, "b": 8.0}, COUNTS)
