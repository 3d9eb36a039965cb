import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.client_dp import ClientDpConfig, ClientDpStage
from privacy.clipping import AdaptiveClipStage, ClipConfig, clip
from privacy.contexts import ClientContext, Draw, Nominal, RoundContext
from privacy.distributed_dp import DistributedDpConfig, DistributedDpStage
from privacy.errors import ClientUpdateError, PipelineError
from privacy.ledger import Ledger
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.stage import Wire
from tests.privacy.rounds import HERE, Round

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_three_four_five_triangle():
    vector = np.array([3.0, 4.0], dtype=np.float32)
    clipped, metrics = clip(vector, norm=1.0)
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-6)
    assert metrics == {"norm": 5.0, "clipped": 1.0}
    assert vector.tolist() == [3.0, 4.0]


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=finite), st.floats(1e-6, 1e6))
def test_norm_is_never_exceeded_and_short_vectors_are_untouched(vector, norm):
    clipped, metrics = clip(vector, norm=norm)
    assert np.linalg.norm(clipped.astype(np.float64)) <= norm
    if not metrics["clipped"]:
        assert clipped.tobytes() == vector.tobytes()


def test_rounding_to_fp32_alone_would_exceed_the_norm():
    """Negative control: scaling without rounding towards zero goes above the norm."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 50)).astype(np.float32)
    naive = [(v * np.float32(1.0 / np.linalg.norm(v))).astype(np.float64) for v in vectors]
    assert max(np.linalg.norm(v) for v in naive) > 1.0
    assert max(np.linalg.norm(clip(v, norm=1.0)[0].astype(np.float64)) for v in vectors) <= 1.0


def test_zero_update_passes():
    clipped, metrics = clip(np.zeros(5, dtype=np.float32), norm=1.0)
    assert not clipped.any()
    assert metrics == {"norm": 0.0, "clipped": 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_raises(bad):
    with pytest.raises(ClientUpdateError, match="NaN or infinity"):
        clip(np.array([1.0, bad], dtype=np.float32), norm=1.0)


@pytest.mark.parametrize("norm", [0.0, -1.0, np.inf, np.nan])
def test_norm_must_be_positive(norm):
    with pytest.raises(ValueError, match="norm="):
        clip(np.ones(2, dtype=np.float32), norm=norm)


# ------------------------------------------------------------------- a norm that follows a quantile


def follow(lengths, *, start, rounds, noise=0.0, quantile=0.5, seed=0):
    """Norms by round when clients send updates of the given lengths."""
    config = ClipConfig(norm=start, quantile=quantile)
    stages = [AdaptiveClipStage(config)]
    if noise:
        stages.append(ClientDpStage(ClientDpConfig(noise_multiplier=noise, delta=1e-5)))
    draw = Draw(kind="poisson", rate=1.0, population=len(lengths))
    pipeline = Pipeline(stages, nominal=Nominal(dimension=2, draws=(draw,)))
    updates = {f"c{i:03d}": np.float32([length, 0.0]) for i, length in enumerate(lengths)}
    generator, ledger, state, norms = np.random.default_rng(seed), Ledger(), {}, [start]
    for _ in range(rounds):
        running = Round(pipeline, updates)
        running.server = pipeline.open_round(
            RoundContext(
                cohort=list(updates), state=state, generator=generator, ledger=ledger, draw=draw, **HERE
            )
        )
        running.client = lambda name, state=state: pipeline.client(
            ClientContext(client=name, state=state, **HERE)
        )
        state = dict(running.result().state)
        norms.append(state["clip.norm"])
    return norms


def test_the_norm_rises_to_where_the_updates_are():
    """All updates have norm 5 and clipping starts at 0.1: the norm must grow to 5, and hover there."""
    norms = follow([5.0] * 20, start=0.1, rounds=60)
    assert norms[0] < norms[20] < norms[-1]
    assert norms[-1] == pytest.approx(5.0, rel=0.15)


def test_the_norm_falls_to_where_the_updates_are():
    assert follow([5.0] * 20, start=100.0, rounds=60)[-1] == pytest.approx(5.0, rel=0.15)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_norm_finds_the_quantile_under_noise(quantile):
    lengths = np.linspace(1.0, 10.0, 100)
    norms = follow(lengths, start=1.0, rounds=80, noise=0.5, quantile=quantile)
    found = (lengths <= np.median(norms[-20:])).mean()
    assert found == pytest.approx(quantile, abs=0.15)


def test_updates_come_back_in_their_own_units():
    pipeline = Pipeline([AdaptiveClipStage(ClipConfig(norm=2.0, quantile=0.5))], nominal=Nominal(dimension=2))
    updates = {"a": np.float32([3.0, 4.0]), "b": np.float32([0.0, 0.0])}
    running = Round(pipeline, updates)
    assert running.result().update.tolist() == pytest.approx([0.6, 0.8])
    payload = pipeline.client(ClientContext(client="a", **HERE)).prepare(updates["a"]).payload
    assert np.linalg.norm(payload.array) <= pipeline.l2_bound + 1e-7
    assert pipeline.l2_bound == pytest.approx((1 + 0.1**2) ** 0.5)


def test_zero_updates_make_the_norm_fall_and_nothing_fail():
    norms = follow([0.0] * 4, start=1.0, rounds=3)
    assert norms == pytest.approx([np.exp(-0.1 * i) for i in range(4)])


def test_planned_rounds_leave_the_norm():
    pipeline = Pipeline([AdaptiveClipStage(ClipConfig(norm=2.0, quantile=0.5))], nominal=Nominal(dimension=2))
    updates = {"a": np.float32([3.0, 4.0]), "b": np.float32([0.0, 0.0])}
    result = Round(pipeline, updates, planned={"a": -1.0, "b": 1.0}, normalise=False).result()
    assert result.state == {"clip.norm": 2.0}


def test_an_adaptive_norm_under_masks_and_noise_of_clients():
    dp = DistributedDpStage(DistributedDpConfig(noise_multiplier=1e-3, delta=1e-5, min_survivors=2))
    masks = SecureAggregationStage(SecureAggregationConfig())
    stages = [AdaptiveClipStage(ClipConfig(norm=2.0, quantile=0.5)), dp, masks]
    pipeline = Pipeline(stages, nominal=Nominal(dimension=2, max_cohort=4))
    updates = {"a": np.float32([3.0, 4.0]), "b": np.float32([0.0, 0.0])}
    running = Round(pipeline, updates, generators={n: np.random.default_rng(0) for n in updates})
    running.server = pipeline.open_round(RoundContext(cohort=list(updates), ledger=Ledger(), **HERE))
    assert running.result().update.tolist() == pytest.approx([0.6, 0.8], abs=0.02)


def test_an_adaptive_clip_comes_first():
    adaptive = AdaptiveClipStage(ClipConfig(norm=2.0, quantile=0.5))
    with pytest.raises(PipelineError, match="bounded"):
        adaptive.wire(Wire(kind="float", l2_bound=1.0), Nominal())
