import numpy as np
import pytest
from scipy import stats

from privacy.clipping import ClipConfig, ClipStage
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import BudgetExceededError, PipelineError
from privacy.ledger import Ledger
from privacy.local_dp import LocalDpConfig, LocalDpStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from tests.privacy.rounds import HERE

CLIP = ClipStage(ClipConfig(norm=0.5))


def local(rounds=None, **config):
    return Pipeline(
        [CLIP, LocalDpStage(LocalDpConfig(delta=1e-5, **config))],
        nominal=Nominal(dimension=4000, rounds=rounds),
    )


def send(pipeline, *, ledger, seed=0, round_id=1):
    here = {**HERE, "round_id": round_id}
    party = pipeline.client(
        ClientContext(client="a", ledger=ledger, generator=np.random.default_rng(seed), **here)
    )
    return party.prepare(np.zeros(4000, np.float32)).payload.array


def test_noise_has_the_scale_that_is_charged():
    ledger = Ledger()
    noise = send(local(noise_multiplier=3.0), ledger=ledger)
    assert stats.kstest(noise, "norm", args=(0, 1.5)).pvalue > 1e-3
    assert stats.kstest(noise, "norm", args=(0, 0.75)).pvalue < 1e-6
    (release,) = ledger.releases()
    assert (release.clients, release.noise_multiplier, release.sampling) == (("a",), 3.0, "none")
    assert release.neighbours == "replace_one"


def test_a_target_over_the_life_and_nothing_beyond():
    pipeline, ledger = local(rounds=4, target_epsilon=3.0), Ledger()
    for round_id in range(4):
        send(pipeline, ledger=ledger, round_id=round_id)
    assert 2.9 < ledger.epsilon("a", unit="client", delta=1e-5) <= 3.0
    before = ledger.to_json()
    assert not pipeline.affordable("a", RoundContext(round_id=5, branch="main", roster=("a",)), ledger)
    with pytest.raises(BudgetExceededError, match="sits round 5 out"):
        send(pipeline, ledger=ledger, round_id=5)
    assert ledger.to_json() == before


def test_unbounded_updates_before_and_after():
    stage = LocalDpStage(LocalDpConfig(noise_multiplier=1.0, delta=1e-5))
    with pytest.raises(PipelineError, match="put clip before"):
        Pipeline([stage])
    masks = SecureAggregationStage(SecureAggregationConfig())
    with pytest.raises(PipelineError, match="nothing bounds"):
        Pipeline([CLIP, stage, masks], nominal=Nominal(max_cohort=5))
    with pytest.raises(ValueError, match="generator"):
        Pipeline([CLIP, stage]).client(ClientContext(client="a", **HERE)).prepare(np.zeros(2, np.float32))
