from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.errors import BudgetExceededError
from privacy.example_dp import ExampleDpConfig, ExampleDpRule
from privacy.ledger import Ledger
from privacy.local import LocalTask

TASK = LocalTask(
    client="a", round_id=1, branch="main", attempt=0, nominal_records=40, steps=5, planned_steps=50
)
DATA = torch.tensor(np.random.default_rng(0).normal(size=(40, 3)), dtype=torch.float32)


def rule(**rest):
    numbers = {"delta": 1e-5, "clip_norm": 0.5, "batch_size": 8, **rest}
    if "target_epsilon" not in rest:
        numbers.setdefault("noise_multiplier", 1.0)
    return ExampleDpRule(ExampleDpConfig(**numbers))


def squared(model, rows):
    return model(DATA[rows]).square().sum(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh_model():
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6).view(2, 3) / 5)
        model.bias.zero_()
    return model


def test_rate_is_batch_size_over_records():
    """Trap: N=9, B=8 in two ragged batches is 8/9, not one over the number of batches."""
    task = replace(TASK, nominal_records=9)
    assert rule().sampling(task) == (pytest.approx(8 / 9), pytest.approx(8.0))
    assert rule().sampling(replace(task, nominal_records=5)) == (1.0, 5.0)
    assert rule(batch_size=None, sample_rate=0.5).sampling(task) == (0.5, 4.5)
    assert rule(batch_size=None).sampling(replace(task, batch_size=3))[1] == pytest.approx(3.0)
    with pytest.raises(ValueError, match="batch_size=None"):
        rule(batch_size=None).sampling(task)
    with pytest.raises(ValueError, match="nominal_records=0"):
        rule().sampling(replace(task, nominal_records=0))


def test_removing_a_record_changes_no_other_draw():
    session = rule().open(TASK, Ledger())
    uniforms = np.random.default_rng(3).random(40)
    whole = session.batch(uniforms)
    kept = np.delete(np.arange(40), 7)
    assert set(kept[session.batch(uniforms[kept])]) == set(whole) - {7}


def test_poisson_batches_have_the_expected_size():
    session = rule().open(TASK, Ledger())
    rng = np.random.default_rng(0)
    sizes = [session.batch(rng.random(40)).size for _ in range(2000)]
    assert np.mean(sizes) == pytest.approx(8.0, abs=4 * np.sqrt(40 * 0.2 * 0.8 / 2000))
    assert np.var(sizes) == pytest.approx(40 * 0.2 * 0.8, rel=0.15)


def test_gradient_is_sum_plus_noise_over_the_public_size():
    model, ledger = fresh_model(), Ledger()
    positions = np.array([1, 5, 9])
    got, _ = rule().open(TASK, ledger).gradients(model, positions, squared, generator(4))
    noise, _ = (
        rule().open(TASK, Ledger()).gradients(model, np.array([], dtype=np.int64), squared, generator(4))
    )
    expected = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    for row in positions:
        names, params = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(squared(model, np.array([row])).sum(), params)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for name, g in zip(names, grads, strict=True):
            expected[name] += g * min(1.0, 0.5 / float(norm))
    for name, value in expected.items():
        torch.testing.assert_close(got[name] - noise[name], value / 8, rtol=1e-4, atol=1e-5)


def test_empty_batch_is_a_noise_only_step_and_never_calls_the_model():
    def explode(model, rows):
        raise AssertionError("the model was called")

    ledger = Ledger()
    session = rule().open(TASK, ledger)
    gradients, metrics = session.gradients(fresh_model(), np.array([], dtype=np.int64), explode, generator())
    assert all(g.abs().min() > 0 for g in gradients.values())
    assert metrics["batch_size"] == 0.0
    assert ledger.releases()[0].steps == 1


def noise_matches(draws, release, *, clip_norm, divisor):
    """Kolmogorov-Smirnov and a chi-square test of the variance against what the ledger says."""
    scaled = np.asarray(draws, dtype=np.float64) * divisor / (release.noise_multiplier * clip_norm)
    shape = stats.kstest(scaled, "norm").pvalue
    tail = stats.chi2.cdf(np.square(scaled).sum(), df=scaled.size)
    return shape > 1e-4 and 1e-4 < tail < 1 - 1e-4


def collect_noise(noise_multiplier):
    ledger = Ledger()
    session = rule(noise_multiplier=noise_multiplier).open(TASK, ledger)
    zeros = {"w": torch.zeros(0, 200, 50)}
    draws = [session.privatise(zeros, generator(s))[0]["w"].flatten() for s in range(3)]
    return torch.cat(draws).numpy(), ledger.releases()[0]


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 3.0])
def test_noise_drawn_is_the_noise_charged(noise_multiplier):
    draws, release = collect_noise(noise_multiplier)
    assert release.noise_multiplier == noise_multiplier
    assert release.steps == 3
    assert noise_matches(draws, release, clip_norm=0.5, divisor=8.0)
    assert not noise_matches(draws * 1.03, release, clip_norm=0.5, divisor=8.0)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_a_mutated_scale_is_caught(monkeypatch, factor):
    """Negative control: code that draws another scale than it records."""
    true_randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: true_randn(*a, **k) * factor)
    draws, release = collect_noise(1.0)
    assert not noise_matches(draws, release, clip_norm=0.5, divisor=8.0)


def test_noise_is_keyed_by_the_generator_alone():
    global_state = torch.get_rng_state()
    one, two, other = (
        rule().open(TASK, Ledger()).privatise({"w": torch.zeros(0, 4)}, generator(s))[0]["w"]
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_each_step_is_written_down_and_no_more_than_opened():
    ledger = Ledger()
    session = rule().open(TASK, ledger)
    for _ in range(5):
        session.privatise({"w": torch.zeros(0, 2)}, generator())
    with pytest.raises(BudgetExceededError, match="spent"):
        session.privatise({"w": torch.zeros(0, 2)}, generator())
    (release,) = ledger.releases()
    assert release == rule().release(TASK)
    assert (release.unit, release.sampling_rate, release.steps) == ("example", 0.2, 5)


def test_budget_lasts_for_the_planned_life_and_then_the_client_sits_out():
    private, ledger = rule(target_epsilon=3.0), Ledger()
    for round_id in range(10):
        session = private.open(replace(TASK, round_id=round_id), ledger)
        for _ in range(5):
            session.privatise({"w": torch.zeros(0, 1)}, generator())
    spent = ledger.epsilon("a", unit="example", delta=1e-5)
    assert 2.9 < spent <= 3.0
    before = ledger.to_json()
    late = replace(TASK, round_id=10)
    assert not private.affordable(late, ledger)
    with pytest.raises(BudgetExceededError, match="sits round 10 out"):
        private.open(late, ledger)
    assert ledger.to_json() == before
    assert private.affordable(replace(late, client="b"), ledger)
    assert rule().affordable(late, ledger)


def test_no_trainable_parameters():
    model = fresh_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable"):
        rule().open(TASK, Ledger()).gradients(model, np.arange(2), squared, generator())


def test_training_learns_at_low_noise():
    model, ledger = fresh_model(), Ledger()
    task = replace(TASK, steps=60)
    session = rule(noise_multiplier=0.3).open(task, ledger)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    rng = np.random.default_rng(1)
    before = float(squared(model, np.arange(40)).mean())
    for step in range(60):
        gradients, _ = session.gradients(model, session.batch(rng.random(40)), squared, generator(step))
        for name, p in model.named_parameters():
            p.grad = gradients[name]
        optimiser.step()
    assert float(squared(model, np.arange(40)).mean()) < 0.3 * before
    assert ledger.releases()[0].steps == 60
