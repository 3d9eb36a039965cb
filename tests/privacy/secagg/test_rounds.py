import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.contexts import ClientContext, Metric, Nominal, RoundContext
from privacy.errors import (
    ClientUpdateError,
    CohortTooSmall,
    OverflowRiskError,
    PipelineError,
    RoundAborted,
    SumUnusable,
)
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.secagg.fixed_point import FixedPoint
from privacy.secagg.layout import Layout, place_of
from privacy.secagg.messages import digest
from privacy.secagg.roster import Roster
from privacy.stage import Wire
from privacy.transport import Contribution
from tests.privacy.rounds import (
    HERE,
    STAGES,
    Round,
    masked_pipeline,
    random_updates,
    run_round,
    secret,
    weighted_mean,
)


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
    running = Round(pipeline, updates, weights=weights)
    total = running.server.channel.total(running.answers(running.received()))

    step = pipeline.channel.terms.layout.update.step
    expected = np.zeros(size, dtype=np.int64)
    for name, update in updates.items():
        norm = np.linalg.norm(update.astype(np.float64))
        party = pipeline.client(ClientContext(client=name, **HERE))
        clipped = party.stages[0].client(update.astype(np.float64), party.context)[0] if norm > 1 else update
        units = clipped.astype(np.float64) * weights[name] / step
        longer = np.linalg.norm(np.rint(units)) * step > weights[name]
        expected += (np.trunc if longer else np.rint)(units).astype(np.int64)
    assert (total.update / step).astype(np.int64).tolist() == expected.tolist()
    assert total.weight == sum(weights.values())


@pytest.mark.parametrize("weight", [1.0, -0.5, 100.0])
def test_rounding_does_not_lengthen_what_noise_is_sized_for(weight):
    """Many coordinates just above half a step: rounded up, each is twice as large."""
    size = 200_000
    layout = masked_pipeline(max_weight=100.0, max_cohort=1000, dimension=size).channel.terms.layout
    update = np.full(size, 0.500001 * layout.update.step / abs(weight))
    update[0] = math.sqrt(1 - float(np.square(update[1:]).sum()))
    own = Contribution(update=update, weight=weight)
    sent = layout.update.decode(layout.encode(own)[:size]) / weight
    nearest = np.rint(update * weight / layout.update.step) * layout.update.step / weight
    assert np.linalg.norm(nearest) > 1.00000001
    assert 0.99 < np.linalg.norm(sent) <= 1.0
    assert np.abs(sent - update).max() <= layout.update.step / abs(weight)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31), st.data())
def test_weighted_mean_error_bound(count, seed, data):
    pipeline = masked_pipeline(norm=10.0, max_weight=1000.0, weighting="examples")
    updates = random_updates(count, 20, seed=seed)
    weights = {n: data.draw(st.integers(1, 1000)) for n in updates}
    result = run_round(pipeline, updates, weights=weights)
    total = sum(weights.values())
    bound = count * pipeline.channel.terms.layout.update.step / total
    assert result.metrics["quantisation_error"] == bound
    error = np.abs(result.update - weighted_mean(updates, weights)).max()
    assert error <= bound + 1e-7 * 0.3  # the mean itself is rounded to fp32


def alive_enough(pipeline, names, drops):
    """Whether the protocol can end, worked out from the rules alone; None if the graph decides."""
    terms = pipeline.channel.terms
    keyed = [n for n in names if drops.get(n) != "before_keys"]
    shared = [n for n in keyed if drops.get(n) != "after_keys"]
    reported = [n for n in shared if drops.get(n) not in ("after_shares", "after_masking")]
    answering = [n for n in reported if drops.get(n) != "during_unmasking"]
    least = max(terms.shares_needed(len(keyed)), terms.min_cohort)
    return min(len(shared), len(reported)) >= least and len(answering) >= terms.shares_needed(len(keyed))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.sampled_from([0.51, 0.6, 0.8, 1.0]), st.integers(0, 2**31), st.data())
def test_any_dropouts_at_any_step_give_the_exact_sum_or_an_abort(count, threshold, seed, data):
    pipeline = masked_pipeline(threshold=threshold)
    updates = random_updates(count, 7, seed=seed)
    drops = {n: data.draw(st.sampled_from(STAGES)) for n in updates if data.draw(st.booleans())}
    running = Round(pipeline, updates, drops=drops)
    if not alive_enough(pipeline, list(updates), drops):
        with pytest.raises(RoundAborted):
            running.result()
        return
    late = ("after_shares", "after_masking")
    there = {n: u for n, u in updates.items() if drops.get(n) in (None, "during_unmasking")}
    assert set(there) == {n for n in updates if drops.get(n) not in ("before_keys", "after_keys", *late)}
    result = running.result()
    assert result.contributors == tuple(sorted(there))
    assert np.array_equal(result.update, run_round(masked_pipeline(threshold=1.0), there).update)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 14), st.sampled_from([2, 4, 6]), st.integers(0, 2**31), st.data())
def test_dropouts_on_any_graph_of_neighbours(count, neighbours, seed, data):
    pipeline = masked_pipeline(max_cohort=14, neighbours=neighbours, threshold=0.8)
    updates = random_updates(count, 5, seed=seed)
    drops = {n: data.draw(st.sampled_from(STAGES)) for n in updates if data.draw(st.integers(0, 3)) == 0}
    try:
        result = Round(pipeline, updates, drops=drops).result()
    except RoundAborted:
        assert drops
        return
    there = {n: updates[n] for n in result.contributors}
    assert not any(drops.get(n) not in (None, "during_unmasking") for n in there)
    assert np.array_equal(result.update, run_round(masked_pipeline(max_cohort=14), there).update)


def test_dropouts_that_would_cut_the_ring_abort():
    """Twelve clients on a ring of four neighbours: silence at two places may not leave sums of a few."""
    with pytest.raises(PipelineError, match="falls apart"):
        masked_pipeline(max_cohort=12, neighbours=4, threshold=0.6)
    pipeline = masked_pipeline(max_cohort=12, neighbours=4, threshold=0.8)
    updates = random_updates(12, 5)
    running = Round(pipeline, updates)
    roster = Roster.from_bytes(
        running.server.collect(running.adverts()),
        place=place_of(running.server.context, running.server.channel.terms),
    )
    ring = sorted(roster.keys, key=lambda name: digest("ring", roster.fingerprint, name))
    gone = dict.fromkeys((ring[0], ring[1], ring[6], ring[7]), "after_masking")
    with pytest.raises(RoundAborted, match="did not report"):
        Round(pipeline, updates, drops=gone).result()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31), st.data())
def test_order_and_names_of_clients_change_no_bit(count, seed, data):
    pipeline = masked_pipeline()
    updates = random_updates(count, 30, seed=seed)
    base = run_round(pipeline, updates).update.tobytes()
    shuffled = data.draw(st.permutations(list(updates)))
    assert run_round(pipeline, {name: updates[name] for name in shuffled}).update.tobytes() == base
    names = data.draw(st.lists(st.text(min_size=1, max_size=5), min_size=count, max_size=count, unique=True))
    renamed = dict(zip(names, updates.values(), strict=True))
    assert run_round(pipeline, renamed).update.tobytes() == base
    other = {**HERE, "attempt": 7, "branch": "retrain"}
    assert run_round(pipeline, updates, here=other).update.tobytes() == base


def test_operating_system_keys_give_the_same_sum():
    pipeline = masked_pipeline()
    updates = random_updates(3, 10)
    running = Round(pipeline, updates)
    running.client = lambda name: pipeline.client(
        ClientContext(client=name, memory=running.memory.get(name, b""), **HERE)
    )
    assert running.result().update.tobytes() == run_round(pipeline, updates).update.tobytes()
    assert len({memory[:41] for memory in running.memory.values()}) == 3


def chi_square_p(words):
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.sampled_from([0.0, 1e-3, 0.5]), st.integers(0, 2**31))
def test_a_masked_vector_is_uniform(count, scale, seed):
    updates = random_updates(count, 20_000, seed=seed, scale=scale)
    running = Round(masked_pipeline(max_cohort=5), updates)
    for payload in running.payloads(running.delivered()).values():
        assert chi_square_p(payload.array) > 1e-5


def test_what_is_masked_is_not_uniform():
    """Negative control of the test above."""
    pipeline = masked_pipeline(max_cohort=3)
    plain = pipeline.channel.terms.layout.update.encode(
        random_updates(1, 50_000, scale=0.003)["c000"].astype(float)
    )
    assert chi_square_p(plain) < 1e-12


def masks(pipeline, here, secrets):
    """Masked zeros minus encoded zeros: the mask that each client added."""
    running = Round(pipeline, {n: np.zeros(64, dtype=np.float32) for n in secrets}, here=here)
    running.client = lambda name: pipeline.client(
        ClientContext(client=name, secret=secrets[name], memory=running.memory.get(name, b""), **here)
    )
    return [payload.array[:64] for payload in running.payloads(running.delivered()).values()]


PLACES = st.fixed_dictionaries(
    {"round_id": st.integers(0, 9), "branch": st.sampled_from("ab"), "attempt": st.integers(0, 3)}
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        PLACES,
        min_size=2,
        max_size=4,
        unique_by=lambda place: (place["round_id"], place["branch"], place["attempt"]),
    ),
    st.data(),
)
def test_no_two_places_share_a_mask(places, data):
    """Whatever the places and whoever takes part, secrets repeating as they like."""
    repeated = {n: secret(n) for n in data.draw(st.sampled_from(["ab", "abc", "abcde"]))}
    seen = [m.tobytes() for here in places for m in masks(masked_pipeline(), here, repeated)]
    assert len(set(seen)) == len(seen)


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
    assert len(set(seen)) == len(seen)
    again = [m.tobytes() for m in masks(pipeline, places[0], repeated)]
    assert again == seen[:3]


def test_too_few_to_unmask_abort_and_the_next_attempt_succeeds():
    pipeline = masked_pipeline(threshold=0.9)
    updates = random_updates(4, 10)
    with pytest.raises(RoundAborted, match=r"1 of 4 masked clients did not report.*threshold=0.9"):
        run_round(pipeline, updates, drops={"c002": "after_masking"})
    rest = {n: u for n, u in updates.items() if n != "c002"}
    result = run_round(pipeline, rest, here={**HERE, "attempt": 1})
    np.testing.assert_allclose(result.update, weighted_mean(rest, dict.fromkeys(rest, 1)), atol=1e-6)


def test_a_sum_that_others_could_read_by_now_counts_as_read():
    """Some told their shares; with what they know of others, colluders might have enough. If nobody did, the
    sum is as safe as before."""
    pipeline = masked_pipeline(threshold=0.9)
    updates = random_updates(4, 10)
    with pytest.raises(SumUnusable, match="3 usable shares") as found:
        run_round(pipeline, updates, drops={"c002": "during_unmasking"})
    assert found.value.contributors == tuple(updates)
    with pytest.raises(RoundAborted, match="0 usable shares") as found:
        run_round(pipeline, updates, drops=dict.fromkeys(updates, "during_unmasking"))
    assert not isinstance(found.value, SumUnusable)


def test_metrics_travel_inside_the_sum():
    pipeline = masked_pipeline(metrics=(Metric(name="loss", bound=8.0),))
    updates = random_updates(2, 4)
    result = run_round(pipeline, updates, metrics={"c000": {"loss": 1.0}, "c001": {"loss": 100.0}})
    assert result.metrics["loss"] == (1.0 + 8.0) / 2
    running = Round(pipeline, updates, metrics={n: {"loss": 2.0} for n in updates})
    for payload in running.payloads(running.delivered()).values():
        assert set(payload.fields) == {"client", "roster", "check", "damaged"}


def test_cohort_sizes():
    with pytest.raises(CohortTooSmall, match="min_cohort=2"):
        masked_pipeline().open_round(RoundContext(cohort=["a"], **HERE))
    with pytest.raises(CohortTooSmall, match="min_cohort=4"):
        masked_pipeline(min_cohort=4).open_round(RoundContext(cohort=["a", "b", "c"], **HERE))
    with pytest.raises(OverflowRiskError, match="max_cohort=8"):
        masked_pipeline().open_round(RoundContext(cohort=[str(i) for i in range(9)], **HERE))
    for drop, did in (("before_keys", "advertised"), ("after_keys", "shared"), ("after_masking", "reported")):
        with pytest.raises(CohortTooSmall, match=f"1 clients {did}"):
            run_round(masked_pipeline(), random_updates(2, 3), drops={"c000": drop})


def test_a_client_refuses_a_roster_with_too_few():
    pipeline, small = masked_pipeline(min_cohort=3), masked_pipeline()
    running = Round(small, random_updates(2, 3))
    broadcast = running.server.collect(running.adverts())
    with pytest.raises(CohortTooSmall, match="min_cohort=3"):
        pipeline.client(ClientContext(client="c000", secret=secret("c000", *HERE.values()), **HERE)).share(
            broadcast
        )


def test_secret_must_have_32_bytes():
    with pytest.raises(ValueError, match="32"):
        masked_pipeline().client(ClientContext(client="a", secret=b"short", **HERE)).advertise()


def test_secrets_do_not_show_in_repr():
    party = masked_pipeline().client(ClientContext(client="a", secret=b"s" * 32, **HERE))
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
    layout = Layout.plan(Wire(kind="float", l2_bound=1.0), Nominal(max_cohort=3, max_weight=1.0))
    assert isinstance(layout.update, FixedPoint)
    assert layout.update.step <= 2.0**-28
