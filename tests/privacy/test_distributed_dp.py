"""Shares of noise at the clients: the sum's scale, room for integers, rounding, and what it is charged."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.clipping import ClipConfig, ClipStage
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.distributed_dp import DistributedDpConfig, DistributedDpStage
from privacy.errors import PipelineError, RoundAborted, SumUnusable
from privacy.ledger import Ledger
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.stage import Wire
from tests.privacy.rounds import HERE, Round, random_updates, weighted_mean

HALF = 2**31


def distributed(noise=1.0, *, survivors=3, cohort=8, norm=1.0, target=None, dimension=1000, **fields):
    config = DistributedDpConfig(
        noise_multiplier=None if target else noise, target_epsilon=target, delta=1e-5, min_survivors=survivors
    )
    masks = SecureAggregationStage(SecureAggregationConfig())
    stages = [ClipStage(ClipConfig(norm=norm)), DistributedDpStage(config), masks]
    return Pipeline(stages, nominal=Nominal(max_cohort=cohort, dimension=dimension, **fields))


def run(pipeline, updates, *, seed=0, **fields):
    ledger = Ledger()
    seeds = np.random.SeedSequence(seed).spawn(len(updates))
    running = Round(
        pipeline,
        updates,
        generators={n: np.random.default_rng(s) for n, s in zip(updates, seeds, strict=True)},
        **fields,
    )
    running.server = pipeline.open_round(
        RoundContext(cohort=list(updates), ledger=ledger, planned_weights=fields.get("planned"), **HERE)
    )
    # A client's generator goes on from message to message, while parties are rebuilt.
    return running.result(), ledger


def test_without_much_noise_it_is_the_mean():
    updates = random_updates(5, 1000, scale=0.01)
    result, _ = run(distributed(1e-4), updates)
    np.testing.assert_allclose(result.update, weighted_mean(updates, dict.fromkeys(updates, 1)), atol=3e-4)


@pytest.mark.parametrize("count", [3, 8])
def test_the_sum_has_at_least_the_noise_that_is_charged(count):
    """Kolmogorov-Smirnov on the noise of the sum: shares for three survivors, so more when eight stay."""
    pipeline = distributed(0.5)
    zeros = {f"c{i}": np.zeros(1000, np.float32) for i in range(count)}
    result, ledger = run(pipeline, zeros)
    std = 0.5 * (count / 3) ** 0.5 / count
    assert stats.kstest(result.update, "norm", args=(0, std)).pvalue > 1e-3
    assert stats.kstest(result.update, "norm", args=(0, std / 2)).pvalue < 1e-6
    (release,) = ledger.releases()
    assert release.mechanism == "skellam"
    assert release.noise_multiplier == pytest.approx(0.5 * (count / 3) ** 0.5)
    assert release.clients == tuple(sorted(zeros))


def test_a_share_is_skellam():
    config = DistributedDpConfig(noise_multiplier=2.0, delta=1e-5, min_survivors=4)
    stage = DistributedDpStage(config)
    nominal = Nominal(max_cohort=3 * 10**7, max_weight=1.0)
    stage.wire(Wire(kind="float", l2_bound=1.0, dimension=16), nominal)
    context = ClientContext(client="a", generator=np.random.default_rng(0), **HERE)
    noise = np.concatenate([stage.client(np.zeros(16), context)[0] * stage.scale for _ in range(400)])
    half = stage._share_std() ** 2 / 2
    assert half < 100, "few enough counts that the shape can be seen"
    values = np.arange(-80, 81)
    observed = np.array([(noise == value).sum() for value in values])
    expected = stats.skellam.pmf(values, half, half) * noise.size
    seen = expected > 5
    rest = max(noise.size - observed[seen].sum(), 0), noise.size - expected[seen].sum()
    chi = ((observed[seen] - expected[seen]) ** 2 / expected[seen]).sum() + (rest[0] - rest[1]) ** 2 / rest[1]
    assert stats.chi2.sf(chi, seen.sum()) > 1e-3
    halved = stats.skellam.pmf(values, half / 2, half / 2) * noise.size
    seen = halved > 5
    chi = ((observed[seen] - halved[seen]) ** 2 / halved[seen]).sum()
    assert stats.chi2.sf(chi, seen.sum()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.05, 50), st.integers(2, 200), st.integers(2, 2000), st.floats(0.01, 100), st.integers(1, 5000)
)
def test_no_full_cohort_can_overflow(noise, survivors, cohort, norm, dimension):
    """n * (q_max + noise tail) < R/2, checked again from the wire."""
    config = DistributedDpConfig(noise_multiplier=noise, delta=1e-5, min_survivors=survivors)
    stage = DistributedDpStage(config)
    incoming = Wire(kind="float", l2_bound=norm, dimension=dimension)
    wire = stage.wire(incoming, Nominal(max_cohort=cohort, max_weight=1.0))
    share = stage.noise_multiplier * stage.norm / survivors**0.5
    assert cohort * (stage.norm + 12 * share) < HALF
    assert wire.largest / wire.step == pytest.approx(stage.norm + 12 * share)
    assert stage.norm >= stage.scale * norm


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(0.0, 30.0))
def test_rounding_keeps_the_bound_and_is_unbiased_enough(seed, dimension, length):
    config = DistributedDpConfig(noise_multiplier=1.0, delta=1e-5, min_survivors=2)
    stage = DistributedDpStage(config)
    stage.wire(
        Wire(kind="float", l2_bound=30.0, dimension=dimension), Nominal(max_cohort=10**7, max_weight=1.0)
    )
    generator = np.random.default_rng(seed)
    vector = generator.normal(size=dimension)
    vector *= length * stage.scale / max(np.linalg.norm(vector), 1e-9)
    whole = stage._rounded(vector, generator)
    assert np.array_equal(whole, np.rint(whole))
    assert np.abs(whole - vector).max() < 1
    assert np.linalg.norm(whole) <= stage.norm


def test_fewer_survivors_than_planned_abort():
    pipeline = distributed(survivors=4)
    assert pipeline.min_cohort == 4
    with pytest.raises(RoundAborted, match="min_cohort=4"):
        run(pipeline, random_updates(5, 1000), drops={"c000": "after_masking", "c001": "after_masking"})


def charged_without_a_result(**fields):
    """The ledger of a round whose sum came out and could not be used, or could be read by colluders."""
    pipeline, ledger = distributed(1.0, max_weight=2.0), Ledger()
    updates = random_updates(4, 1000, scale=0.01)
    generators = {n: np.random.default_rng(i) for i, n in enumerate(updates)}
    running = Round(pipeline, updates, generators=generators, **fields)
    running.server = pipeline.open_round(
        RoundContext(cohort=list(updates), ledger=ledger, planned_weights=fields.get("planned"), **HERE)
    )
    if running.planned:
        running.planned = {**running.planned, "c003": 2.0}
    with pytest.raises(RoundAborted) as found:
        running.result()
    return found.value, ledger


def test_a_sum_that_cannot_be_used_is_charged_all_the_same():
    error, ledger = charged_without_a_result(planned=dict.fromkeys(random_updates(4, 1), 0.5))
    assert "was planned" in str(error)
    (release,) = ledger.releases()
    assert release.clients == ("c000", "c001", "c002", "c003")
    assert release.noise_multiplier == pytest.approx((4 / 3) ** 0.5)


def test_so_is_one_that_some_have_told_their_shares_for():
    silent = dict.fromkeys(("c001", "c002"), "during_unmasking")
    error, ledger = charged_without_a_result(drops=silent)
    assert isinstance(error, SumUnusable)
    assert ledger.releases()[0].clients == ("c000", "c001", "c002", "c003")
    error, ledger = charged_without_a_result(drops=dict.fromkeys(random_updates(4, 1), "during_unmasking"))
    assert not isinstance(error, SumUnusable)
    assert not ledger.releases()


def test_planned_weights_scale_the_update_and_not_the_noise():
    pipeline = distributed(1e-4, max_weight=2.0)
    updates = random_updates(4, 1000, scale=0.01)
    planned = {"c000": -2.0, "c001": 1.0, "c002": 1.0, "c003": 1.0}
    result, _ = run(pipeline, updates, planned=planned, normalise=True)
    np.testing.assert_allclose(result.update, weighted_mean(updates, planned), atol=1e-3)


@pytest.mark.parametrize("target", [3.0, 57.0, 200.0])
def test_a_target_is_met(target):
    pipeline = distributed(target=target, rounds=5, survivors=3)
    ledger = Ledger()
    for round_id in range(5):
        stage = pipeline.stages[1]
        here = pipeline.open_round(RoundContext(cohort=list("abc"), **{**HERE, "round_id": round_id})).context
        ledger.append(stage._release(("a", "b", "c"), here, stage.noise_multiplier))
    assert 0.95 * target < ledger.epsilon("a", unit="client", delta=1e-5) <= target


def test_what_cannot_be_built():
    config = DistributedDpConfig(noise_multiplier=1.0, delta=1e-5, min_survivors=3)
    stage, clip = DistributedDpStage(config), ClipStage(ClipConfig(norm=1.0))
    with pytest.raises(PipelineError, match="put clip before"):
        Pipeline([stage], nominal=Nominal(max_cohort=5, dimension=4))
    with pytest.raises(PipelineError, match="without secure_aggregation"):
        Pipeline([clip, stage], nominal=Nominal(max_cohort=5, dimension=4))
    with pytest.raises(PipelineError, match="dimension=None"):
        Pipeline([clip, stage], nominal=Nominal(max_cohort=5))
    masks = SecureAggregationStage(SecureAggregationConfig())
    with pytest.raises(PipelineError, match="takes float, but gets grid"):
        Pipeline([_renamed(clip), stage, clip, masks], nominal=Nominal(max_cohort=5, dimension=4))


def _renamed(clip):
    """A clip under another name, since a stage may appear once."""

    class Other(ClipStage):
        @property
        def facts(self):
            return replace(super().facts, name="bound")

    return Other(clip.config)
