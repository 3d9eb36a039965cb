"""One byte a step: the code, the estimate, the replay, and training by it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsim.federation.rounds import run_round
from fedsim.model.adapter import AdapterModel
from fedsim.model.forward import evaluating, forward
from fedsim.model.text import collate
from fedsim.model.vectors import from_vector, to_vector
from fedsim.training.cohorts import CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.training.drift import Proximal
from fedsim.training.executors import make_executor
from fedsim.training.jobs import shuffled_batches
from fedsim.training.objectives import ReferenceKl
from fedsim.training.optimizers import make_optimizer
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.spsa import PERTURBATION, Address, decode, descend, encode, replay, slope_between
from fedsim.training.stacked import why_not_stackable
from privacy import Ledger, LocalTask
from privacy.example_dp import ExampleDpConfig, ExampleDpRule
from tests.fedsim.training.test_sequential import gradient, make_job, train
from tests.world import LOCAL, make_step, make_world, random_arrays, same

HERE = Address(seed=1, round=2, client=3)
SPSA = LocalConfig(epochs=2, batch_size=2, lr=1e-3, optimizer="spsa")


@pytest.fixture(scope="module")
def executor(model: AdapterModel) -> SequentialExecutor:
    return SequentialExecutor(model=model)


# ----------------------------------------------------------------------------------- by hand


def test_codes_by_hand():
    assert [encode(slope) for slope in (1.0, -1.0, math.e, 0.0, 1e9, -1e9, 1e-9)] == [
        64,
        -64,
        80,
        0,
        127,
        -127,
        0,
    ]
    assert (decode(64), decode(-64), decode(0)) == (1.0, -1.0, 0.0)
    assert decode(80) == pytest.approx(math.e)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="slope="):
            encode(bad)
    for code in (-128, 128):
        with pytest.raises(ValueError, match="code="):
            decode(code)


def test_one_step_by_hand():
    """Along a linear loss the slope is the direction's part along it, rounded to a level."""
    along_D = np.float64([0.5, -2.0])
    found = descend(lambda w_D, step: float(w_D @ along_D), HERE, dimension=2, lr=0.1, steps=1)
    direction_D = HERE.direction(0, 2)
    slope = float(direction_D @ along_D)
    assert decode(int(np.frombuffer(found.codes, np.int8)[0])) == pytest.approx(slope, rel=0.033)
    np.testing.assert_allclose(found.update_D, -0.1 * slope * direction_D, rtol=0.033)


@given(st.floats(0.02, 50.0), st.sampled_from([1, -1]))
def test_rounding_is_within_a_thirty_second_of_a_nat(size, sign):
    assert decode(encode(sign * size)) / (sign * size) == pytest.approx(1.0, rel=math.expm1(1 / 32) + 1e-9)


@given(st.integers(-127, 127))
def test_codes_come_back(code):
    assert encode(decode(code)) == code


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(-127, 127), max_size=12),
    dimension=st.integers(1, 50),
    lr=st.floats(1e-6, 1.0),
    seed=st.integers(0, 2**40),
)
def test_bytes_alone_replay_to_the_same_bits(codes, dimension, lr, seed):
    """A loss that is made to give these codes; the server has nothing but them."""
    address = replace(HERE, seed=seed)
    queue = iter(
        [half for code in codes for half in (decode(code) * PERTURBATION, -decode(code) * PERTURBATION)]
    )
    found = descend(lambda w_D, step: next(queue), address, dimension=dimension, lr=lr, steps=len(codes))
    assert list(np.frombuffer(found.codes, np.int8)) == codes
    assert replay(found.codes, address, dimension=dimension, lr=lr).tobytes() == found.update_D.tobytes()
    assert len(found.codes) == len(codes)


@given(st.binary(max_size=20))
def test_any_bytes_replay_or_are_refused(codes):
    try:
        update_D = replay(codes, HERE, dimension=4, lr=0.1)
    except ValueError:
        assert b"\x80" in codes
        return
    assert np.isfinite(update_D).all()


def test_the_estimate_is_the_gradient_on_average():
    """Mean of g z over many directions against the gradient; z of another address is the negative control."""
    gradient_D, repeats = np.linspace(-2, 3, 5), 20_000
    own, other = np.zeros(5), np.zeros(5)
    for step in range(repeats):
        away_D = HERE.direction(step, 5)
        slope = slope_between(
            float(PERTURBATION * away_D @ gradient_D), float(-PERTURBATION * away_D @ gradient_D)
        )
        own += decode(encode(slope)) * away_D / repeats
        other += decode(encode(slope)) * replace(HERE, client=4).direction(step, 5) / repeats
    limit = 5 * math.sqrt(2 * gradient_D @ gradient_D / repeats)
    assert np.abs(own - gradient_D).max() < limit
    assert np.abs(other - gradient_D).max() > limit


def test_directions_differ_by_everything_in_their_address():
    drawn = [a.direction(s, 8).tobytes() for a in (HERE, replace(HERE, round=3)) for s in (0, 1)]
    assert len(set(drawn)) == 4
    assert HERE.direction(0, 8).tobytes() == drawn[0]


# ---------------------------------------------------------------------------------- training


def test_training_is_the_replay_of_its_bytes(model, executor, start):
    """The bytes, measured here by hand from the model's own losses, give the client's update bit by bit."""
    job = make_job(model, start, local=SPSA)
    update = train(executor, job)
    batches, address = shuffled_batches(job), Address(seed=job.seed, round=job.round, client=job.client)
    start_D = to_vector(start)

    def loss(update_D, step):
        pairs = [job.pairs[position] for position in batches[step]]
        return mean_loss(model, start_D + update_D, start, replace(job, pairs=tuple(pairs)))

    found = descend(loss, address, dimension=start_D.size, lr=SPSA.lr, steps=len(batches))
    again = replay(found.codes, address, dimension=start_D.size, lr=SPSA.lr)
    assert len(found.codes) == len(batches) == 6
    assert update.tobytes() == again.tobytes()
    assert update.any()


def mean_loss(model, vector_D, like, job):
    model.load(from_vector(vector_D, like))
    with torch.no_grad(), evaluating(model.module):
        losses = job.objective(forward(model.module, collate(job.pairs, pad_id=model.pad_id)), None)
    return float(losses.double().mean())


def test_the_slope_is_the_gradient_along_the_direction(model, executor, start):
    job = make_job(model, start, local=SPSA.model_copy(update={"epochs": 1, "batch_size": 100}))
    update = train(executor, job)
    direction_D = Address(seed=job.seed, round=job.round, client=job.client).direction(0, update.size)
    slope = -float(update @ direction_D) / (SPSA.lr * float(direction_D @ direction_D))
    exact = float(gradient(model, start, job) @ direction_D)
    assert slope == pytest.approx(exact, rel=0.1)


def test_the_loss_falls(model, executor, start):
    local = SPSA.model_copy(update={"epochs": 150, "batch_size": 100, "lr": 1e-3})
    job = make_job(model, start, local=local)
    before = mean_loss(model, to_vector(start), start, job)
    update = train(executor, job)
    assert mean_loss(model, to_vector(start) + update, start, job) < before - 0.05


def test_a_pull_and_a_reference(model, executor, start):
    longer = SPSA.model_copy(update={"epochs": 20})
    free = train(executor, make_job(model, start, local=longer))
    pulled = train(executor, make_job(model, start, local=longer, drift=Proximal(0.5)))
    assert np.linalg.norm(pulled) < np.linalg.norm(free)
    referred = make_job(model, start, local=SPSA, objective=ReferenceKl(), reference=random_arrays(model, 5))
    (result,) = executor.train_clients([referred])
    assert result.error is None
    tokens = sum(len(pair.input_ids) for pair in referred.pairs)
    assert result.tokens == 2 * 2 * tokens * SPSA.epochs


def test_it_trains_alone_and_says_why(model, start):
    limit = CohortLimit(clients=8, tokens=10**6)
    assert why_not_stackable(model) is None
    alone = make_executor([model], limit, optimizer="spsa")
    assert isinstance(alone, SequentialExecutor)
    assert "direction of its own" in alone.why_alone
    jobs = [make_job(model, start, client=client, local=SPSA) for client in (1, 2)]
    batched = make_executor([model], limit)
    assert not isinstance(batched, SequentialExecutor)
    for one, two in zip(alone.train_clients(jobs), batched.train_clients(jobs), strict=True):
        assert one.update.tobytes() == two.update.tobytes()
        assert one.error is None


def test_what_needs_gradients_is_refused(model, executor, start):
    rule = ExampleDpRule(ExampleDpConfig(noise_multiplier=1.0, delta=1e-5, clip_norm=1.0))
    task = LocalTask(
        client="1", round_id=3, branch="main", attempt=0, nominal_records=5, steps=1, planned_steps=1
    )
    job = make_job(model, start, local=SPSA, rule=rule, task=task, ledger=Ledger())
    (result,) = executor.train_clients([job])
    assert "example_dp clips gradients" in str(result.error)
    assert not job.ledger.releases()
    with pytest.raises(ValueError, match="takes no gradients"):
        make_optimizer(SPSA, list(model.parameters().values()))
    for foreign in ({"weight_decay": 0.1}, {"momentum": 0.5}):
        with pytest.raises(ValidationError, match="spsa takes no"):
            LocalConfig(optimizer="spsa", **foreign)


def test_a_loss_that_diverges_is_the_clients_fault(model, executor, start):
    job = make_job(model, start, local=SPSA.model_copy(update={"lr": 1e30}))
    (result,) = executor.train_clients([job])
    assert result.error is not None
    assert result.update.size == 0


# ------------------------------------------------------------------------------ what travels


def without_codes(job, result):
    return replace(result, codes=b"")


def round_of(model, start, *, local=SPSA, **settings):
    world = make_world(model, local=local, serialise=True, **settings)
    federation = world.federation()
    federation.adapter = {name: value.copy() for name, value in start.items()}
    outcome = run_round(federation, make_step(1, [0, 1, 2]), "keep", world.engine)
    return federation.adapter, outcome


def test_bytes_travel_and_give_the_round_that_vectors_give(model, start):
    """4, 5 and 6 records in batches of 2, twice: 4, 6 and 6 steps, in an array whose header takes as much."""
    replayed, outcome = round_of(model, start)
    sent, whole = round_of(model, start, faults=dict.fromkeys(range(3), without_codes))
    assert same(replayed, sent)
    assert not same(replayed, start)
    size = sum(value.size for value in start.values())
    assert whole.taken.bytes_up - outcome.taken.bytes_up == 3 * 4 * size - (4 + 6 + 6)
    assert outcome.failures == whole.failures == {}


def test_a_vector_travels_where_a_stage_changed_it(model, start):
    """A clip that bites is not in the bytes; one that does not bite leaves them."""
    for norm, by_bytes in ((1e-3, False), (1e6, True)):
        privacy = [{"stage": "clip", "norm": norm}]
        clipped, outcome = round_of(model, start, privacy=privacy)
        sent, whole = round_of(model, start, privacy=privacy, faults=dict.fromkeys(range(3), without_codes))
        assert same(clipped, sent)
        assert (outcome.taken.bytes_up < whole.taken.bytes_up) == by_bytes


def test_bytes_travel_under_masks_as_a_vector(model, start):
    privacy = [{"stage": "clip", "norm": 1e6}, {"stage": "secure_aggregation"}]
    _, outcome = round_of(model, start, privacy=privacy)
    assert outcome.failures == {}
    assert outcome.taken.bytes_up > 3 * 4 * sum(value.size for value in start.values())


def test_bytes_that_are_no_codes_are_their_clients_fault(model, start):
    """Their update was made of other bytes than they send; whoever was asked for gradients may send none."""
    longer = {1: lambda job, result: replace(result, codes=result.codes[:-1] + b"\x80")}
    _, outcome = round_of(model, start, faults=longer)
    assert list(outcome.failures) == [1]
    assert "code=-128" in outcome.failures[1]
    assert outcome.contributors == (0, 2)
    unasked = {1: lambda job, result: replace(result, codes=b"\x01")}
    _, outcome = round_of(model, start, local=LOCAL, faults=unasked)
    assert list(outcome.failures) == [1]
    assert "not asked for" in outcome.failures[1]
