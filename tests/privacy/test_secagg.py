import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.clipping import ClipConfig, ClipStage
from privacy.errors import (
    ClientUpdateError,
    CohortTooSmall,
    MalformedMessage,
    OverflowRiskError,
    PipelineError,
    RoundAborted,
)
from privacy.fixed_point import FixedPoint
from privacy.masks import digest
from privacy.pipeline import Pipeline
from privacy.roster import Roster
from privacy.secagg import Layout, SecureAggregationConfig, SecureAggregationStage
from privacy.stage import Metric, Nominal, Payload, Wire
from tests.privacy.rounds import (
    HERE,
    masked_pipeline,
    payloads_of,
    random_updates,
    run_round,
    secret,
    weighted_mean,
)


def opened(pipeline, updates, **rest):
    return pipeline.open_round(cohort=list(updates), **{**HERE, **rest})


def test_two_clients_by_hand():
    pipeline = masked_pipeline()
    updates = {"a": np.float32([0.5, 0.0]), "b": np.float32([0.25, -0.5])}
    result = run_round(pipeline, updates)
    assert result.update.tolist() == [0.375, -0.25]
    assert result.total_weight == 2.0
    assert result.contributors == ("a", "b")


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 40), st.integers(0, 2**31), st.data())
def test_masked_sum_is_the_sum_of_quantised_vectors_exactly(count, size, seed, data):
    pipeline = masked_pipeline(max_weight=50.0, weighting="examples")
    updates = random_updates(count, size, seed=seed, scale=1.0)
    weights = {n: data.draw(st.integers(1, 50)) for n in updates}
    server = opened(pipeline, updates)
    total = server.channel.total(payloads_of(pipeline, server, updates, weights=weights))

    step = pipeline.channel.layout.update.step
    expected = np.zeros(size, dtype=np.int64)
    for name, update in updates.items():
        norm = np.linalg.norm(update.astype(np.float64))
        party = pipeline.client(name, **HERE)
        clipped = party.stages[0].client(update.astype(np.float64), party.context)[0] if norm > 1 else update
        expected += np.rint(clipped.astype(np.float64) * weights[name] / step).astype(np.int64)
    assert (total.update / step).astype(np.int64).tolist() == expected.tolist()
    assert total.weight == sum(weights.values())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31), st.data())
def test_weighted_mean_error_bound(count, seed, data):
    pipeline = masked_pipeline(norm=10.0, max_weight=1000.0, weighting="examples")
    updates = random_updates(count, 20, seed=seed)
    weights = {n: data.draw(st.integers(1, 1000)) for n in updates}
    result = run_round(pipeline, updates, weights=weights)
    total = sum(weights.values())
    bound = count * pipeline.channel.layout.update.step / (2 * total)
    assert result.metrics["quantisation_error"] == bound
    error = np.abs(result.update - weighted_mean(updates, weights)).max()
    assert error <= bound + 1e-7 * 0.3  # the mean itself is rounded to fp32


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.sampled_from([None, 2, 4, 6]), st.integers(0, 2**31))
def test_masks_cancel_on_any_graph_of_neighbours(count, neighbours, seed):
    stages = [
        ClipStage(ClipConfig(norm=1.0)),
        SecureAggregationStage(SecureAggregationConfig(neighbours=neighbours)),
    ]
    pipeline = Pipeline(stages, max_cohort=9, max_weight=1.0)
    updates = random_updates(count, 5, seed=seed)
    sparse = run_round(pipeline, updates)
    assert np.array_equal(sparse.update, run_round(masked_pipeline(max_cohort=9), updates).update)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.sampled_from([2, 4, 20]))
def test_neighbours_agree_and_everybody_is_connected(count, wanted):
    names = [f"c{index}" for index in range(count)]
    roster = Roster.build(bytes(32), {name: digest("key", name) for name in names})
    graph = {name: set(roster.neighbours(name, wanted)) for name in names}
    assert all(name in graph[peer] for name in names for peer in graph[name])
    assert all(name not in graph[name] for name in names)
    assert {len(peers) for peers in graph.values()} == {min(wanted, count - 1)}
    reached, frontier = set(), {names[0]}
    while frontier:
        reached |= frontier
        frontier = set().union(*(graph[name] for name in frontier)) - reached
    assert reached == set(names)


def test_order_and_names_of_clients_change_no_bit():
    pipeline = masked_pipeline()
    updates = random_updates(5, 30)
    base = run_round(pipeline, updates).update.tobytes()
    assert run_round(pipeline, dict(reversed(updates.items()))).update.tobytes() == base
    renamed = dict(zip(["z", "y", "x", "w", "v"], updates.values(), strict=True))
    assert run_round(pipeline, renamed).update.tobytes() == base
    other = {**HERE, "attempt": 7, "branch": "retrain"}
    assert run_round(pipeline, updates, here=other).update.tobytes() == base


def test_operating_system_keys_give_the_same_sum():
    pipeline = masked_pipeline()
    updates = random_updates(3, 10)
    parties = {n: pipeline.client(n, **HERE) for n in updates}
    server = opened(pipeline, updates)
    broadcast = server.collect({n: p.advertise() for n, p in parties.items()})
    payloads = {n: p.prepare(updates[n], broadcast=broadcast).payload for n, p in parties.items()}
    assert server.aggregate(payloads).update.tobytes() == run_round(pipeline, updates).update.tobytes()
    assert len({p.secret for p in parties.values()}) == 3


def chi_square_p(words):
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue


def test_a_masked_vector_is_uniform():
    pipeline = masked_pipeline(max_cohort=3)
    updates = {n: np.zeros(50_000, dtype=np.float32) for n in "abc"}
    server = opened(pipeline, updates)
    for payload in payloads_of(pipeline, server, updates).values():
        assert chi_square_p(payload.array) > 1e-4
    # Negative control: what is masked, without the mask.
    plain = pipeline.channel.layout.update.encode(
        random_updates(1, 50_000, scale=0.003)["c000"].astype(float)
    )
    assert chi_square_p(plain) < 1e-12


def masks(pipeline, here, secrets):
    """Masked zeros minus encoded zeros: the mask that each client added."""
    zeros = {n: np.zeros(64, dtype=np.float32) for n in secrets}
    server = pipeline.open_round(cohort=list(zeros), **here)
    clients = {n: pipeline.client(n, secret=s, **here) for n, s in secrets.items()}
    broadcast = server.collect({n: c.advertise() for n, c in clients.items()})
    return [c.prepare(zeros[n], broadcast=broadcast).payload.array[:64] for n, c in clients.items()]


def test_no_two_rounds_share_a_mask_even_if_secrets_repeat():
    pipeline = masked_pipeline()
    repeated = {n: secret(n) for n in "abc"}
    places = [
        {"round_id": r, "branch": b, "attempt": a} for r in (1, 2) for b in ("main", "leave") for a in (0, 1)
    ]
    seen = [m.tobytes() for here in places for m in masks(pipeline, here, repeated)]
    other = masked_pipeline(session="another federation")
    seen += [m.tobytes() for m in masks(other, places[0], repeated)]
    seen += [m.tobytes() for m in masks(pipeline, places[0], {n: repeated[n] for n in "ab"})]
    # With two clients both masks are opposite; with three, all differ.
    assert len(set(seen)) == len(seen)
    again = [m.tobytes() for m in masks(pipeline, places[0], repeated)]
    assert again == seen[:3]


def test_missing_client_aborts_and_the_next_attempt_succeeds():
    pipeline = masked_pipeline()
    updates = random_updates(4, 10)
    server = opened(pipeline, updates)
    payloads = payloads_of(pipeline, server, updates)
    del payloads["c002"]
    with pytest.raises(RoundAborted, match="c002"):
        server.aggregate(payloads)
    rest = {n: u for n, u in updates.items() if n != "c002"}
    result = run_round(pipeline, rest, here={**HERE, "attempt": 1})
    np.testing.assert_allclose(result.update, weighted_mean(rest, dict.fromkeys(rest, 1)), atol=1e-6)


def test_dropping_before_masking_does_not_abort():
    pipeline = masked_pipeline()
    updates = random_updates(4, 10)
    server = opened(pipeline, updates)
    present = {n: updates[n] for n in list(updates)[:3]}
    result = server.aggregate(payloads_of(pipeline, server, present))
    np.testing.assert_allclose(result.update, weighted_mean(present, dict.fromkeys(present, 1)), atol=1e-6)
    assert len(result.contributors) == 3


def test_metrics_travel_inside_the_sum():
    pipeline = masked_pipeline(metrics=(Metric(name="loss", bound=8.0),))
    updates = random_updates(2, 4)
    result = run_round(pipeline, updates, metrics={"c000": {"loss": 1.0}, "c001": {"loss": 100.0}})
    assert result.metrics["loss"] == (1.0 + 8.0) / 2
    server = opened(pipeline, updates)
    for payload in payloads_of(
        pipeline, server, updates, metrics={n: {"loss": 2.0} for n in updates}
    ).values():
        assert set(payload.fields) == {"client", "roster"}


def test_cohort_sizes():
    with pytest.raises(CohortTooSmall, match="min_cohort=2"):
        masked_pipeline().open_round(cohort=["a"], **HERE)
    with pytest.raises(CohortTooSmall, match="min_cohort=4"):
        masked_pipeline(min_cohort=4).open_round(cohort=["a", "b", "c"], **HERE)
    with pytest.raises(OverflowRiskError, match="max_cohort=8"):
        masked_pipeline().open_round(cohort=[str(i) for i in range(9)], **HERE)
    pipeline = masked_pipeline()
    server = pipeline.open_round(cohort=["a", "b"], **HERE)
    with pytest.raises(CohortTooSmall, match="1 clients advertised"):
        server.collect({"a": pipeline.client("a", **HERE).advertise()})


def test_a_client_refuses_a_roster_with_too_few():
    pipeline, small = masked_pipeline(min_cohort=3), masked_pipeline()
    parties = {n: small.client(n, secret=secret(n), **HERE) for n in "ab"}
    broadcast = small.open_round(cohort=["a", "b"], **HERE).collect(
        {n: p.advertise() for n, p in parties.items()}
    )
    with pytest.raises(CohortTooSmall):
        pipeline.client("a", secret=secret("a"), **HERE).prepare(np.zeros(2, np.float32), broadcast=broadcast)


@pytest.fixture
def started():
    pipeline = masked_pipeline()
    updates = random_updates(3, 6)
    server = opened(pipeline, updates)
    parties = {n: pipeline.client(n, secret=secret(n), **HERE) for n in updates}
    return pipeline, server, parties, {n: p.advertise() for n, p in parties.items()}, updates


@pytest.mark.parametrize(
    "mutate", [lambda m: m[:-1], lambda m: m + b"x", lambda m: b"", lambda m: b"X" + m[1:]]
)
def test_damaged_adverts(started, mutate):
    _, server, _, adverts, _ = started
    with pytest.raises(MalformedMessage):
        server.collect({**adverts, "c001": mutate(adverts["c001"])})


def test_swapped_replayed_and_foreign_adverts(started):
    pipeline, server, _, adverts, _ = started
    with pytest.raises(MalformedMessage, match="another client"):
        server.collect({**adverts, "c000": adverts["c001"], "c001": adverts["c000"]})
    old = pipeline.client("c000", secret=secret("c000"), **{**HERE, "round_id": 2}).advertise()
    with pytest.raises(MalformedMessage, match="round or attempt"):
        server.collect({**adverts, "c000": old})
    with pytest.raises(MalformedMessage, match="cohort"):
        server.collect({**adverts, "zed": pipeline.client("zed", **HERE).advertise()})


def test_small_order_key_is_refused(started):
    _, server, parties, adverts, updates = started
    bad = adverts["c001"][:36] + bytes(32) + adverts["c001"][68:]
    broadcast = server.collect({**adverts, "c001": bad})
    with pytest.raises(MalformedMessage, match="no valid X25519"):
        parties["c000"].prepare(updates["c000"], broadcast=broadcast)


def test_equal_keys_are_refused(started):
    _, server, _, adverts, _ = started
    stolen = adverts["c001"][:36] + adverts["c000"][36:68] + adverts["c001"][68:]
    with pytest.raises(MalformedMessage, match="same public key"):
        server.collect({**adverts, "c001": stolen})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_roster_never_gives_a_wrong_sum(data):
    pipeline = masked_pipeline()
    updates = random_updates(3, 6)
    server = opened(pipeline, updates)
    parties = {n: pipeline.client(n, secret=secret(n), **HERE) for n in updates}
    broadcast = server.collect({n: p.advertise() for n, p in parties.items()})
    position = data.draw(st.integers(0, len(broadcast) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = broadcast[:position] + bytes([broadcast[position] ^ flip]) + broadcast[position + 1 :]
    if data.draw(st.booleans()):
        damaged = broadcast[:position]
    messages = {"c000": damaged, "c001": broadcast, "c002": broadcast}
    with pytest.raises(RoundAborted):
        server.aggregate(
            {n: p.prepare(updates[n], broadcast=messages[n]).payload for n, p in parties.items()}
        )


def test_roster_of_another_round_or_without_me(started):
    pipeline, server, parties, adverts, updates = started
    broadcast = server.collect(adverts)
    late = pipeline.client("c000", secret=secret("c000"), **{**HERE, "attempt": 1})
    with pytest.raises(MalformedMessage, match="round or attempt"):
        late.prepare(updates["c000"], broadcast=broadcast)
    with pytest.raises(MalformedMessage, match="does not list"):
        pipeline.client("c000", secret=bytes(32), **HERE).prepare(updates["c000"], broadcast=broadcast)
    with pytest.raises(MalformedMessage):
        parties["c000"].prepare(updates["c000"], broadcast=b"")


def test_damaged_payloads(started):
    _, server, parties, adverts, updates = started
    broadcast = server.collect(adverts)
    good = {n: p.prepare(updates[n], broadcast=broadcast).payload for n, p in parties.items()}
    first = good["c000"]
    bad = [
        Payload(array=first.array[:-1], fields=first.fields),
        Payload(array=first.array.astype(np.float32), fields=first.fields),
        replace(first, fields={**first.fields, "client": "c001"}),
        replace(first, fields={**first.fields, "roster": "00" * 32}),
        good["c001"],
    ]
    for payload in bad:
        with pytest.raises(MalformedMessage):
            server.aggregate({**good, "c000": payload})
    with pytest.raises(MalformedMessage):
        server.aggregate({**good, "zed": first})
    assert server.aggregate(good).contributors == tuple(updates)


def test_a_payload_of_an_earlier_round_cannot_be_replayed(started):
    pipeline, server, parties, adverts, updates = started
    broadcast = server.collect(adverts)
    good = {n: p.prepare(updates[n], broadcast=broadcast).payload for n, p in parties.items()}
    before = {**HERE, "round_id": 2}
    old_server = pipeline.open_round(cohort=list(updates), **before)
    old = payloads_of(pipeline, old_server, updates, here=before)
    with pytest.raises(MalformedMessage):
        server.aggregate({**good, "c000": old["c000"]})


def test_masks_that_do_not_cancel_are_noticed(started):
    _, server, parties, adverts, updates = started
    broadcast = server.collect(adverts)
    good = {n: p.prepare(updates[n], broadcast=broadcast).payload for n, p in parties.items()}
    noise = np.frombuffer(os.urandom(4 * good["c000"].array.size), dtype=np.uint32)
    noise = noise | np.uint32(1)  # the count differs by an odd number for sure
    with pytest.raises(RoundAborted, match="did not cancel"):
        server.aggregate({**good, "c000": replace(good["c000"], array=good["c000"].array + noise)})


def test_steps_out_of_order(started):
    _, server, _, adverts, _ = started
    with pytest.raises(RoundAborted, match="collect"):
        server.aggregate({})
    server.collect(adverts)
    with pytest.raises(RoundAborted, match="already"):
        server.collect(adverts)


def test_secret_must_have_32_bytes():
    with pytest.raises(ValueError, match="32"):
        masked_pipeline().client("a", secret=b"short", **HERE).advertise()


def test_secrets_do_not_show_in_repr():
    party = masked_pipeline().client("a", secret=b"s" * 32, **HERE)
    assert "ssss" not in repr(party)


@pytest.mark.parametrize(("cohort", "weight"), [(1100, 1e6), (10, 1e9)], ids=["1100 clients", "huge weights"])
def test_too_coarse_or_overflowing_is_refused_at_construction(cohort, weight):
    with pytest.raises(OverflowRiskError, match="coarser"):
        masked_pipeline(max_cohort=cohort, max_weight=weight, weighting="examples")


def test_a_light_client_among_heavy_ones_is_not_lost():
    pipeline = masked_pipeline(max_cohort=20, max_weight=1000.0, weighting="examples")
    updates = {f"c{i}": np.float32([0.0, 0.5 if i == 0 else 0.0]) for i in range(20)}
    weights = {n: 1 if n == "c0" else 1000 for n in updates}
    result = run_round(pipeline, updates, weights=weights)
    np.testing.assert_allclose(result.update, weighted_mean(updates, weights), atol=1e-6)
    with pytest.raises(ClientUpdateError, match="max_weight=1000"):
        run_round(pipeline, updates, weights={**weights, "c3": 1001})


def test_full_norm_in_one_coordinate_fits_at_any_weight_bound():
    for weight in (0.1, 1 / 3, 1.0, 7.7, 999.0):
        pipeline = masked_pipeline(norm=0.3, max_weight=weight)
        updates = {n: np.float32([s * 5.0, 0.0]) for n, s in (("a", 1), ("b", 1), ("c", -1))}
        planned = dict.fromkeys(updates, weight)
        result = run_round(pipeline, updates, planned=planned)
        np.testing.assert_allclose(result.update, [0.1, 0.0], atol=1e-6)


def test_needs_a_bound_and_room():
    stage = SecureAggregationStage(SecureAggregationConfig())
    with pytest.raises(PipelineError, match="put clip before"):
        stage.wire(Wire(kind="float", l2_bound=None), Nominal(max_cohort=3, max_weight=1.0))
    with pytest.raises(PipelineError, match="threshold"):
        SecureAggregationStage(SecureAggregationConfig(threshold=0.6))
    layout = Layout.plan(Wire(kind="float", l2_bound=1.0), Nominal(max_cohort=3, max_weight=1.0))
    assert isinstance(layout.update, FixedPoint)
    assert layout.update.step <= 2.0**-28
