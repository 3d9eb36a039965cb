"""The client-level game, on a pipeline with noise at the server that exists only here."""

import numpy as np
import pytest

from privacy.audit import client_game
from privacy.clipping import ClipConfig, ClipStage
from privacy.ledger import EVERYONE, Ledger, Release
from privacy.pipeline import Pipeline
from privacy.stage import Facts, Stage
from tests.privacy.rounds import masked_pipeline

ROUNDS, RATE, NORM = 3, 0.5, 2.0
NOISE = {1.0: 3.8, 4.0: 1.28}
"""Noise multipliers for about these epsilons at delta 1e-5 over all rounds."""


class Noise(Stage):
    """Gaussian noise on the sum; ``drawn`` is the share of the noise charged that is really drawn."""

    def __init__(self, noise_multiplier, drawn=1.0):
        self.noise_multiplier, self.drawn = noise_multiplier, drawn

    @property
    def facts(self):
        return Facts(name="noise", place="update", charges="client")

    def sum(self, total, context):
        context.ledger.append(
            Release(
                round_id=context.round_id,
                branch=context.branch,
                client=EVERYONE,
                unit="client",
                noise_multiplier=self.noise_multiplier,
                sampling_rate=RATE,
            )
        )
        noise = context.generator.normal(size=total.size) * self.noise_multiplier * NORM
        return total + self.drawn * noise, {}


class NoClip(ClipStage):
    """Declares a bound and does nothing."""

    def client(self, update, context):
        return update, {}


def poisson(rate, seed):
    rng = np.random.default_rng(seed)
    return lambda round_id, present: [name for name in present if rng.random() < rate]


def play(epsilon, *, drawn=1.0, rate=RATE, clip=ClipStage, canaries=1000, seeds=range(3), **rest):
    pipeline = Pipeline([clip(ClipConfig(norm=NORM)), Noise(NOISE[epsilon], drawn)])
    return [
        client_game(
            pipeline,
            poisson(rate, seed),
            rounds=ROUNDS,
            delta=1e-5,
            generator=np.random.default_rng(100 + seed),
            canaries=canaries,
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
    assert count_broken(play(1.0, clip=NoClip, canaries=500)) == 3


def test_a_rate_above_the_claimed_one_is_caught():
    assert count_broken(play(4.0, rate=2 * RATE)) == 3


def test_a_round_without_a_cohort_shows_nothing():
    pipeline = Pipeline([ClipStage(ClipConfig(norm=NORM)), Noise(NOISE[4.0])])
    cohorts = [[], None]
    told = client_game(
        pipeline,
        lambda round_id, present: present if cohorts[round_id - 1] is None else cohorts[round_id - 1],
        rounds=2,
        delta=1e-5,
        generator=np.random.default_rng(0),
        canaries=50,
    )
    once = Release(
        round_id=2, branch="b", client="a", unit="client", noise_multiplier=NOISE[4.0], sampling_rate=RATE
    )
    assert told.claimed_epsilon == Ledger([once]).epsilon("a", unit="client", delta=1e-5)


def test_bad_pipelines():
    rest = {"rounds": 1, "delta": 1e-5, "generator": np.random.default_rng(0), "canaries": 5}
    for pipeline, message in (
        (Pipeline([Noise(1.0)]), "l2_bound=None"),
        (masked_pipeline(), "secure channel"),
        (Pipeline([ClipStage(ClipConfig(norm=1.0))]), "no claim"),
    ):
        with pytest.raises(ValueError, match=message):
            client_game(pipeline, poisson(1.0, 0), **rest)
    with pytest.raises(ValueError, match="rounds=0"):
        client_game(Pipeline([ClipStage(ClipConfig(norm=1.0))]), poisson(1.0, 0), **rest | {"rounds": 0})
