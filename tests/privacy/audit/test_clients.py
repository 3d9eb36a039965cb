"""The client-level game, on pipelines that keep their claims and on broken ones."""

from dataclasses import replace

import numpy as np
import pytest

from privacy.audit import client_game
from privacy.client_dp import ClientDpConfig, ClientDpStage
from privacy.clipping import AdaptiveClipStage, ClipConfig, ClipStage
from privacy.compression import CompressionConfig, CompressionStage
from privacy.contexts import Draw, Nominal
from privacy.distributed_dp import DistributedDpConfig, DistributedDpStage
from privacy.local_dp import LocalDpConfig, LocalDpStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage

ROUNDS, RATE, NORM = 3, 0.5, 2.0
NOISE = {1.0: 3.8, 4.0: 1.28}
"""Noise multipliers for about these epsilons at delta 1e-5 over all rounds."""


class Weak(ClientDpStage):
    """Draws only a share of the noise that it charges."""

    def __init__(self, config, drawn):
        super().__init__(config)
        self.drawn = drawn

    def sum(self, total, context):
        noisy, metrics = super().sum(total, context)
        return total + self.drawn * (noisy - total), metrics


def stage(noise, drawn=1.0):
    return Weak(ClientDpConfig(noise_multiplier=noise, delta=1e-5), drawn)


class NoClip(ClipStage):
    """Declares a bound and does nothing."""

    def client(self, update, context):
        return update, {}


def poisson(rate, seed):
    rng = np.random.default_rng(seed)
    return lambda round_id, present: [name for name in present if rng.random() < rate]


def play(
    epsilon, *, drawn=1.0, rate=RATE, clip=ClipStage, checked=True, canaries=1000, seeds=range(3), **rest
):
    """Unless ``checked``, the server takes updates of any length."""
    pipeline = Pipeline(
        [clip(ClipConfig(norm=NORM)), stage(NOISE[epsilon], drawn)], nominal=Nominal(dimension=canaries)
    )
    if not checked:
        pipeline.channel = replace(pipeline.channel, max_norm=None)
    return [
        client_game(
            pipeline,
            poisson(rate, seed),
            rounds=ROUNDS,
            delta=1e-5,
            generator=np.random.default_rng(100 + seed),
            canaries=canaries,
            draw=Draw(kind="poisson", rate=RATE, population=canaries),
            **rest,
        )
        for seed in seeds
    ]


def count_broken(results):
    return sum(told.broken for told in results)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_a_kept_claim_stands(epsilon):
    results = play(epsilon)
    assert all(told.audited_epsilon <= told.claimed_epsilon for told in results)
    assert all(told.claimed_epsilon == pytest.approx(epsilon, rel=0.1) for told in results)
    assert all(told.level == "client" for told in results)


def test_half_the_noise_is_caught():
    assert count_broken(play(4.0, drawn=0.5, canaries=600, seeds=range(10))) >= 9
    assert count_broken(play(1.0, drawn=0.5, canaries=3000)) == 3


@pytest.mark.parametrize("bound", ["accuracy", "one_run"])
def test_no_noise_is_caught(bound):
    assert count_broken(play(1.0, drawn=0.0, bound=bound, canaries=3000, seeds=range(2))) == 2


def test_clipping_that_does_nothing_is_caught():
    assert count_broken(play(1.0, clip=NoClip, checked=False, canaries=500)) == 3


def test_behind_the_servers_check_clipping_that_does_nothing_does_no_harm():
    assert count_broken(play(1.0, clip=NoClip, canaries=500)) == 0


def test_a_rate_above_the_claimed_one_is_caught():
    assert count_broken(play(4.0, rate=2 * RATE)) == 3


def game(stages, *, canaries, seed=0, noise=None, **fields):
    pipeline = Pipeline(
        [ClipStage(ClipConfig(norm=NORM)), *stages],
        nominal=Nominal(dimension=canaries, max_cohort=canaries, **fields),
    )
    return client_game(
        pipeline,
        poisson(1.0, 0),
        rounds=ROUNDS,
        delta=1e-5,
        generator=np.random.default_rng(seed),
        canaries=canaries,
    )


class Quiet(LocalDpStage):
    """Half the noise that it charges, at the client."""

    def client(self, update, context):
        noisy, metrics = super().client(update, context)
        return update + (noisy - update) / 2, metrics


def test_noise_of_each_client_is_audited_where_it_is_seen():
    config = LocalDpConfig(noise_multiplier=4.0, delta=1e-5)
    assert not game([LocalDpStage(config)], canaries=1000).broken
    told = game([Quiet(config)], canaries=1000)
    assert told.broken
    assert told.audited_epsilon > told.claimed_epsilon


class Miserly(DistributedDpStage):
    """Shares of noise of a quarter the size."""

    def _share_std(self):
        return super()._share_std() / 4


def test_noise_shared_under_masks_is_audited_in_the_sum():
    config = DistributedDpConfig(noise_multiplier=1.0, delta=1e-5, min_survivors=60)
    masks = SecureAggregationStage(SecureAggregationConfig(neighbours=4, threshold=0.8))
    assert not game([DistributedDpStage(config), masks], canaries=200).broken
    assert game([Miserly(config), masks], canaries=200).broken


@pytest.mark.parametrize("norm", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("drawn", [1.0, 0.5])
def test_under_a_clip_that_adapts(norm, drawn):
    clip = AdaptiveClipStage(ClipConfig(norm=norm, quantile=0.5))
    pipeline = Pipeline([clip, stage(NOISE[4.0], drawn)], nominal=Nominal(dimension=1000, max_cohort=1000))
    told = client_game(
        pipeline,
        poisson(RATE, 0),
        rounds=ROUNDS,
        delta=1e-5,
        generator=np.random.default_rng(0),
        draw=Draw(kind="poisson", rate=RATE, population=1000),
        canaries=1000,
    )
    assert told.broken == (drawn < 1)


def test_canaries_that_do_not_come_through_say_so():
    squeeze = CompressionStage(CompressionConfig(method="ternary"))
    with pytest.raises(ValueError, match="do not come through"):
        game([squeeze, stage(1.0)], canaries=200)


def test_what_cannot_be_played():
    rest = {"rounds": 1, "delta": 1e-5, "generator": np.random.default_rng(0), "canaries": 5}
    for pipeline, message in (
        (Pipeline([]), "l2_bound=None"),
        (Pipeline([ClipStage(ClipConfig(norm=1.0))]), "no claim"),
    ):
        with pytest.raises(ValueError, match=message):
            client_game(pipeline, poisson(1.0, 0), **rest)
    with pytest.raises(ValueError, match="rounds=0"):
        client_game(Pipeline([ClipStage(ClipConfig(norm=1.0))]), poisson(1.0, 0), **rest | {"rounds": 0})
