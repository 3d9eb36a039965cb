"""The example-level game: a kept claim stands, a broken one falls."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from privacy import dp_sgd, example_dp
from privacy.audit import example_game
from privacy.audit.canaries import DiracGradients
from privacy.dp_sgd import DenseGradients
from privacy.example_dp import ExampleDpConfig, ExampleDpRule, ExampleDpSession
from privacy.ledger import Ledger
from privacy.local import LocalTask

TASK = LocalTask(
    client="a", round_id=0, branch="main", attempt=0, nominal_records=50, steps=4, planned_steps=20
)
LIFE = [replace(TASK, round_id=i) for i in range(5)]
SEEDS = range(10)


def rule(**rest):
    numbers = {"delta": 1e-5, "clip_norm": 0.5, "sample_rate": 0.2, "target_epsilon": 1.0, **rest}
    return ExampleDpRule(ExampleDpConfig(**numbers))


def play(private, *, seeds=SEEDS, canaries=5000, **rest):
    return [
        example_game(private, LIFE, generator=np.random.default_rng(seed), canaries=canaries, **rest)
        for seed in seeds
    ]


def count_broken(results):
    return sum(told.broken for told in results)


def with_noise(monkeypatch, change):
    """Noise that is drawn otherwise than it is charged."""
    true = example_dp.draw_noise
    monkeypatch.setattr(example_dp, "draw_noise", lambda *args: change(true(*args)))


def test_dirac_gradients_are_rows_of_a_matrix():
    rows, factors = np.array([3, 0, 4]), torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
    dirac = DiracGradients(rows, 2.0, 6)
    dense = DenseGradients(2.0 * torch.eye(6)[rows], [3])
    torch.testing.assert_close(dirac.norms(), dense.norms())
    torch.testing.assert_close(dirac.sums(factors), dense.sums(factors))
    assert DiracGradients(rows[:0], 2.0, 6).sums(factors[:0]).tolist() == [[0.0] * 6]


@pytest.mark.parametrize("target", [1.0, 4.0])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_a_kept_claim_stands(target, rate):
    results = play(rule(target_epsilon=target, sample_rate=rate), canaries=20_000)
    assert all(told.audited_epsilon <= told.claimed_epsilon for told in results)
    assert all(told.claimed_epsilon == pytest.approx(target, rel=0.01) for told in results)
    assert np.mean([told.audited_epsilon for told in results]) > 0.6 * target  # and the game is not blind


@pytest.mark.parametrize(("target", "canaries"), [(1.0, 5000), (4.0, 1000)])
def test_half_the_noise_is_caught(monkeypatch, target, canaries):
    private = rule(target_epsilon=target)
    assert count_broken(play(private, canaries=canaries)) == 0
    with_noise(monkeypatch, lambda noise: noise / 2)
    assert count_broken(play(private, canaries=canaries)) >= 9


def test_four_fifths_of_the_noise_are_caught_by_many_canaries(monkeypatch):
    with_noise(monkeypatch, lambda noise: noise * 0.8)
    assert count_broken(play(rule(sample_rate=1.0), canaries=100_000)) >= 9


@pytest.mark.parametrize("bound", ["accuracy", "one_run"])
def test_no_noise_is_caught(monkeypatch, bound):
    with_noise(monkeypatch, lambda noise: noise * 0)
    for told in play(rule(), bound=bound, canaries=2000):
        assert told.broken
        assert 1.0 < told.audited_epsilon <= told.certifiable_epsilon


def test_half_the_noise_is_caught_without_any_assumption(monkeypatch):
    private = rule(sample_rate=1.0)
    rest = {"bound": "one_run", "canaries": 50_000}
    assert count_broken(play(private, **rest)) == 0
    with_noise(monkeypatch, lambda noise: noise / 2)
    assert count_broken(play(private, **rest)) >= 9


def test_noise_shared_by_all_coordinates(monkeypatch):
    """Scores that are not independent: only the bound that does not assume it can be relied on."""
    with_noise(monkeypatch, lambda noise: noise[:1].expand_as(noise))
    assert count_broken(play(rule(), bound="one_run")) == len(SEEDS)


def test_a_rate_above_the_claimed_one_is_caught(monkeypatch):
    monkeypatch.setattr(
        ExampleDpSession,
        "batch",
        lambda self, uniforms: np.flatnonzero(uniforms < 2 * self.step_release.sampling_rate),
    )
    assert count_broken(play(rule())) >= 9


def test_clipping_that_does_nothing_is_caught(monkeypatch):
    def unclipped(gradients, counts, *, clip_norm):
        return dp_sgd.clip_and_sum(gradients, counts, clip_norm=1e9)

    monkeypatch.setattr(example_dp, "clip_and_sum", unclipped)
    assert count_broken(play(rule(), canaries=1000)) == len(SEEDS)


def test_noise_that_is_not_charged_is_caught():
    """Each round with a ledger of its own: the game asks the ledger, which knows of one round only."""

    class Forgetful(ExampleDpRule):
        def open(self, task, ledger):
            return super().open(task, ledger if task.round_id == 0 else Ledger())

    assert count_broken(play(Forgetful(rule(target_epsilon=4.0).config))) >= 9


def test_a_life_ends_where_the_budget_does():
    private = rule(target_epsilon=1.0)
    lives = [LIFE, [*LIFE, replace(TASK, round_id=5)]]
    one, two = (
        example_game(private, life, generator=np.random.default_rng(0), canaries=500) for life in lives
    )
    assert one == two
    assert one.claimed_epsilon <= 1.0


def test_a_game_leaves_a_training_alone():
    """Steps of a training with and without games in between: same noise, same ledger, same global state."""
    private, told = rule(), []

    def train(games):
        ledger, noise = Ledger(), torch.Generator().manual_seed(1)
        session = private.open(TASK, ledger)
        seen = []
        for seed in range(TASK.steps):
            seen.append(session.privatise({"w": torch.zeros(0, 3)}, noise)[0]["w"])
            if games:
                told.extend(play(private, seeds=[seed], canaries=100))
        return torch.stack(seen), ledger.to_json(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002

    alone, beside = train(games=False), train(games=True)
    assert len(told) == TASK.steps
    assert torch.equal(alone[0], beside[0])
    assert alone[1] == beside[1]
    assert torch.equal(alone[2], beside[2])
    assert alone[3] == beside[3]


def test_same_generator_same_result():
    one, same, other = play(rule(), seeds=[3, 3, 4], canaries=500)
    assert one == same
    assert one.correct != other.correct


def test_certifiable_grows_with_canaries():
    reach = [play(rule(), seeds=[0], canaries=m)[0].certifiable_epsilon for m in (10, 40, 160)]
    assert reach == sorted(reach)
    assert reach[0] < reach[-1]


def test_bad_lives():
    for life in ([], [TASK, replace(TASK, client="b")]):
        with pytest.raises(ValueError, match="exactly one client"):
            example_game(rule(), life, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="no claim"):
        example_game(rule(), [replace(TASK, steps=40)], generator=np.random.default_rng(0), canaries=10)
