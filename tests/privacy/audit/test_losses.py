"""The game about the loss: each sample's own mean stands, the mean over the batch's tokens falls."""

import numpy as np
import pytest
import torch

from privacy import example_dp
from privacy.audit import LossGame
from privacy.example_dp import ExampleDpConfig, ExampleDpRule
from privacy.per_sample import sample_means

SHORT, LONG, BACKGROUND = 1, 48, 16
LENGTHS = torch.tensor([SHORT] * BACKGROUND + [LONG])
"""Tokens of each record; the last is the canary."""


def rows():
    """Features (N, T, 3) and next tokens (N, T): all short records alike, so that their gradients add up."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(BACKGROUND + 1, LONG, 3, generator=rng)
    features[:BACKGROUND] = features[0] + 0.1 * features[:BACKGROUND]
    tokens = torch.randint(0, 4, (BACKGROUND + 1, LONG), generator=rng)
    tokens[:BACKGROUND] = 1
    return features, tokens


FEATURES, TOKENS = rows()


def token_sums(model, positions):
    logits = model(FEATURES[positions])
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), TOKENS[positions], reduction="none")
    counts = LENGTHS[positions]
    inside = torch.arange(LONG)[None] < counts[:, None]
    return (losses * inside).sum(1), counts


def own_mean(model, positions):
    return sample_means(*token_sums(model, positions))


def token_mean(model, positions):
    """What a language model returns by default, split over samples."""
    sums, counts = token_sums(model, positions)
    return sums / counts.sum()


def game(loss, *, target=1.0, clip_norm=0.05, **rest):
    model = torch.nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    config = ExampleDpConfig(
        target_epsilon=target, delta=1e-5, clip_norm=clip_norm, **{"sample_rate": 1.0} | rest
    )
    return LossGame(ExampleDpRule(config), model, loss, np.arange(BACKGROUND), BACKGROUND)


def play(scene, seeds=range(4), games=120):
    return [scene.play(generator=np.random.default_rng(seed), games=games) for seed in seeds]


@pytest.mark.parametrize("target", [1.0, 4.0])
def test_each_sample_on_its_own_stands(target):
    scene = game(own_mean, target=target)
    assert scene.sensitivity <= 1.0
    for told in play(scene):
        assert not told.broken
        assert told.audited_epsilon <= told.claimed_epsilon == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize("target", [1.0, 4.0])
def test_the_mean_over_tokens_is_caught(target):
    scene = game(token_mean, target=target)
    assert scene.sensitivity > 4.0
    results = play(scene)
    assert all(told.broken for told in results)
    assert all(told.certifiable_epsilon > told.claimed_epsilon for told in results)


def test_noise_for_another_clip_norm_is_caught(monkeypatch):
    true = example_dp.draw_noise
    monkeypatch.setattr(example_dp, "draw_noise", lambda *args: true(*args) / 4)
    assert all(told.broken for told in play(game(own_mean)))


def test_the_model_stays_as_it_was():
    scene = game(own_mean)
    before = {name: p.clone() for name, p in scene.model.named_parameters()}
    state = torch.get_rng_state()
    (told,) = play(scene, seeds=[0], games=5)
    assert told.guesses == told.canaries == 5
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in scene.model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_scenes():
    with pytest.raises(ValueError, match=r"sample_rate=1\.0"):
        game(own_mean, sample_rate=0.5)
    silent = game(lambda model, positions: 0 * own_mean(model, positions))
    with pytest.raises(ValueError, match="does not change the gradient"):
        play(silent, seeds=[0])
