"""Local training of one client at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig
from fedsim.model.forward import forward
from fedsim.model.text import collate
from fedsim.model.vectors import Arrays, to_vector
from fedsim.training.config import LocalConfig
from fedsim.training.drift import Proximal
from fedsim.training.jobs import TrainJob, private_draws
from fedsim.training.objectives import MeanNll, Needs, ReferenceKl
from fedsim.training.optimizers import make_optimizer
from fedsim.training.sequential import SequentialExecutor, _plain_steps
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.methods.npo import NpoLoss
from privacy import Ledger, LocalTask
from privacy.example_dp import ExampleDpConfig, ExampleDpRule
from tests.world import encode, make_model, make_records, random_arrays, same

SGD = LocalConfig(epochs=1, batch_size=100, lr=0.1, optimizer="sgd", max_grad_norm=None)


@pytest.fixture(scope="module")
def executor(model: AdapterModel) -> SequentialExecutor:
    return SequentialExecutor(model=model)


def make_job(model: AdapterModel, start: Arrays, *, client: int = 1, count: int = 5, **more) -> TrainJob:
    records = make_records(client, count)
    fields = {
        "client": client,
        "round": 3,
        "seed": 9,
        "adapter": start,
        "pairs": encode(model, records),
        "record_ids": tuple(record.record_id for record in records),
        "local": SGD,
        "objective": MeanNll(),
    }
    return TrainJob(**(fields | more))


def train(executor: SequentialExecutor, job: TrainJob) -> np.ndarray:
    (result,) = executor.train_clients([job])
    assert result.error is None, result.error
    return result.update


def gradient(model: AdapterModel, arrays: Arrays, job: TrainJob) -> np.ndarray:
    """Of the mean loss over all of a job's pairs at ``arrays``."""
    model.load(arrays)
    batch = collate(job.pairs, pad_id=model.pad_id)
    loss = job.objective(forward(model.module, batch), None).mean()
    names = list(model.names)
    found = torch.autograd.grad(loss, [model.parameters()[name] for name in names])
    return to_vector({name: g.numpy() for name, g in zip(names, found, strict=True)})


def test_an_sgd_step_is_minus_lr_times_the_gradient(executor, model, start) -> None:
    job = make_job(model, start)
    expected = -SGD.lr * gradient(model, start, job)
    assert train(executor, job) == pytest.approx(expected, abs=1e-6)


def test_loss_steps_tokens_and_examples_are_counted(executor, model, start) -> None:
    job = make_job(model, start, local=SGD.model_copy(update={"batch_size": 2, "epochs": 3}))
    (result,) = executor.train_clients([job])
    assert result.examples == 5
    assert result.steps == 9 == job.steps
    assert result.tokens == 3 * sum(len(pair.input_ids) for pair in job.pairs)
    (still,) = executor.train_clients([replace(job, local=SGD.model_copy(update={"lr": 1e-12}))])
    model.load(start)
    batch = collate(job.pairs, pad_id=model.pad_id)
    assert still.loss == pytest.approx(float(forward(model.module, batch).mean_nll.mean()), rel=1e-5)


def test_training_is_deterministic_and_blind_to_other_jobs(executor, model, start) -> None:
    local = SGD.model_copy(update={"batch_size": 2, "optimizer": "adamw", "epochs": 2})
    jobs = [make_job(model, start, client=client, local=local) for client in range(4)]
    together = [result.update for result in executor.train_clients(jobs)]
    backwards = [result.update for result in executor.train_clients(jobs[::-1])][::-1]
    alone = [train(executor, job) for job in jobs]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert one.tobytes() == two.tobytes() == three.tobytes()
    assert len({update.tobytes() for update in alone}) == 4


def test_nobody_trains_nothing(executor) -> None:
    assert executor.train_clients([]) == []


def test_no_records_give_no_update(executor, model, start) -> None:
    (result,) = executor.train_clients([make_job(model, start, pairs=(), record_ids=())])
    assert result.steps == result.tokens == 0
    assert not result.update.any()


def test_a_record_that_goes_leaves_the_order_of_the_others(executor, model, start, monkeypatch) -> None:
    """Batches of one record: the sequence that training really saw, with and without one record."""
    local = SGD.model_copy(update={"batch_size": 1, "epochs": 2})

    def seen(without: int | None) -> list[str]:
        kept = [i for i in range(6) if i != without]
        job = make_job(model, start, count=6, local=local)
        name_of = dict(zip(job.pairs, job.record_ids, strict=True))
        job = replace(
            job, pairs=tuple(job.pairs[i] for i in kept), record_ids=tuple(job.record_ids[i] for i in kept)
        )
        order = []

        def note(pairs, **rest):
            order.extend(name_of[pair] for pair in pairs)
            return collate(pairs, **rest)

        monkeypatch.setattr("fedsim.training.sequential.collate", note)
        train(executor, job)
        monkeypatch.undo()
        return order

    everything = seen(None)
    assert everything[:6] != sorted(everything[:6])
    assert everything[:6] != everything[6:]
    for gone in range(6):
        assert seen(gone) == [name for name in everything if name != f"c1/r{gone}"]


def test_other_rounds_seeds_and_clients_shuffle_otherwise(executor, model, start) -> None:
    job = make_job(model, start, local=SGD.model_copy(update={"batch_size": 1}))
    updates = {train(executor, j).tobytes() for j in (job, replace(job, round=4), replace(job, seed=10))}
    assert len(updates) == 3


def test_gradients_are_clipped_at_their_norm(executor, model, start) -> None:
    job = make_job(model, start)
    norm = float(np.linalg.norm(gradient(model, start, job)))
    tight = replace(job, local=SGD.model_copy(update={"max_grad_norm": norm / 4}))
    loose = replace(job, local=SGD.model_copy(update={"max_grad_norm": norm * 4}))
    free = train(executor, job)
    assert np.linalg.norm(train(executor, tight)) == pytest.approx(SGD.lr * norm / 4, rel=1e-4)
    assert train(executor, tight) == pytest.approx(free / 4, abs=1e-6)
    assert train(executor, loose) == pytest.approx(free, abs=1e-7)


def test_proximal_term_pulls_by_mu_times_the_distance(executor, model, start) -> None:
    """Two SGD steps on one batch: w2 = w1 - lr (g(w1) + mu (w1 - w0))."""
    local = SGD.model_copy(update={"epochs": 2})
    job, mu = make_job(model, start, local=local), 3.0
    first = train(executor, replace(job, local=SGD))
    names = list(model.names)
    moved, offset = {}, 0
    for name in names:
        size = start[name].size
        moved[name] = start[name] + first[offset : offset + size].reshape(start[name].shape)
        offset += size
    expected = first - SGD.lr * (gradient(model, moved, job) + mu * first)
    assert train(executor, replace(job, drift=Proximal(mu))) == pytest.approx(expected, abs=1e-6)


def test_a_heavy_proximal_term_keeps_the_client_near(executor, model, start) -> None:
    job = make_job(model, start, local=SGD.model_copy(update={"epochs": 20, "batch_size": 2}))
    norms = [np.linalg.norm(train(executor, replace(job, drift=Proximal(mu)))) for mu in (0.0, 1.0, 9.0)]
    assert norms[2] < norms[1] < norms[0]
    assert norms[2] < 0.5 * norms[0]


def test_momentum_and_weight_decay_reach_the_optimiser() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1))]
    sgd = make_optimizer(SGD.model_copy(update={"momentum": 0.5, "weight_decay": 0.1}), parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.5, 0.1)
    adam = make_optimizer(LocalConfig(lr=0.3, weight_decay=0.2), parameters)
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.3, 0.2)


def test_a_job_that_raises_is_its_own_failure(executor, model, start) -> None:
    def fail(current, reference):
        raise ArithmeticError("no loss today")

    fail.needs = Needs()
    good = make_job(model, start, client=2)
    results = executor.train_clients([make_job(model, start, objective=fail), good])
    assert results[0].error == "ArithmeticError: no loss today"
    assert results[0].update.size == 0
    assert results[1].error is None
    assert results[1].update.tobytes() == train(executor, good).tobytes()


def test_an_update_that_is_not_finite_is_an_error(executor, model, start) -> None:
    wild = SGD.model_copy(update={"lr": 1e30, "epochs": 6})
    (result,) = executor.train_clients([make_job(model, start, local=wild, objective=NegatedNll())])
    assert result.error is not None
    assert "not finite after 6 steps" in result.error
    assert result.steps == 6
    assert result.tokens > 0


def test_the_model_is_left_in_evaluation_mode_without_gradients(executor, model, start) -> None:
    train(executor, make_job(model, start))
    assert not any(module.training for module in model.module.modules())
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_the_job_is_not_changed(executor, model, start) -> None:
    before = {name: value.copy() for name, value in start.items()}
    train(executor, make_job(model, start))
    assert same(start, before)


# ------------------------------------------------------------------------------- references


@pytest.mark.parametrize("objective", [NpoLoss(0.5), ReferenceKl()])
def test_a_reference_pass_leaves_the_adapter_as_it_was(executor, model, start, objective) -> None:
    job = make_job(model, start, objective=objective, reference=random_arrays(model, 12))
    model.load(start)
    model.module.train()
    batch = collate(job.pairs, pad_id=model.pad_id)
    passed = executor.reference_pass(job, batch)
    assert same(model.arrays(), start)
    assert model.module.training
    model.module.eval()
    model.load(job.reference)
    with torch.no_grad():
        assert torch.equal(passed.nll_B, forward(model.module, batch).nll_B)
    assert not passed.nll_B.requires_grad


def test_distillation_from_the_start_has_no_gradient(executor, model, start) -> None:
    job = make_job(model, start, objective=ReferenceKl(), reference=start)
    assert np.abs(train(executor, job)).max() < 1e-7


def test_a_missing_reference_is_the_jobs_failure(executor, model, start) -> None:
    (result,) = executor.train_clients([make_job(model, start, objective=ReferenceKl())])
    assert result.error is not None


# ---------------------------------------------------------------------------------- dropout


def test_dropout_is_drawn_from_the_jobs_stream(llama_base) -> None:
    model = make_model(llama_base, lora=LoraConfig(r=2, alpha=4, dropout=0.5))
    executor, start = SequentialExecutor(model=model), random_arrays(model, 11)
    job = make_job(model, start)
    before = torch.get_rng_state()
    once = train(executor, job)
    torch.manual_seed(5)
    noted = torch.get_rng_state()
    again = train(executor, job)
    assert torch.equal(torch.get_rng_state(), noted)
    torch.set_rng_state(before)
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != train(executor, replace(job, round=4)).tobytes()
    dry = make_model(llama_base)
    assert not np.allclose(once, train(SequentialExecutor(model=dry), make_job(dry, start)))


def test_the_reference_has_no_dropout(llama_base) -> None:
    model = make_model(llama_base, lora=LoraConfig(r=2, alpha=4, dropout=0.5))
    executor, start = SequentialExecutor(model=model), random_arrays(model, 11)
    job = make_job(model, start, objective=ReferenceKl(), reference=start)
    batch = collate(job.pairs, pad_id=model.pad_id)
    model.load(start)
    model.module.train()
    passes = [executor.reference_pass(job, batch).nll_B for _ in range(2)]
    model.module.eval()
    assert torch.equal(*passes)


# --------------------------------------------------------------------------- private training


def make_private(model, start, *, noise: float, ledger: Ledger, clip: float = 1.0, **more) -> TrainJob:
    config = ExampleDpConfig(noise_multiplier=noise, delta=1e-5, clip_norm=clip)
    local = SGD.model_copy(update={"batch_size": 2, "epochs": 2})
    task = LocalTask(
        client="1",
        round_id=3,
        branch="keep",
        attempt=0,
        nominal_records=5,
        steps=6,
        planned_steps=60,
        batch_size=2.0,
    )
    private = {"rule": ExampleDpRule(config), "task": task, "ledger": ledger, "local": local}
    return make_job(model, start, **(private | more))


def test_private_steps_write_releases(executor, model, start) -> None:
    ledger = Ledger()
    (result,) = executor.train_clients([make_private(model, start, noise=1.0, ledger=ledger)])
    assert result.error is None
    (release,) = ledger.releases()
    assert (release.steps, release.clients, release.unit) == (6, ("1",), "example")
    assert release.sampling_rate == pytest.approx(0.4)
    assert result.steps == 6


def test_private_training_is_keyed(executor, model, start) -> None:
    def update(**more) -> bytes:
        return train(executor, make_private(model, start, noise=1.0, ledger=Ledger(), **more)).tobytes()

    assert update() == update()
    assert len({update(), update(round=4), update(seed=10), update(client=2)}) == 4


def test_private_training_of_a_deployed_client_cannot_be_repeated(executor, model, start) -> None:
    def update(**more) -> bytes:
        job = make_private(model, start, noise=1.0, ledger=Ledger(), keyed_secrets=False, **more)
        return train(executor, job).tobytes()

    assert update() != update()
    job = make_private(model, start, noise=1.0, ledger=Ledger(), keyed_secrets=False)
    assert not np.array_equal(private_draws(job, 0), private_draws(job, 0))
    assert private_draws(job, 0).shape == (5,)


def test_a_private_step_without_noise_or_clipping_is_the_sum_of_the_batch(executor, model, start) -> None:
    """Rate 1: every record is drawn, so a step is plain SGD on all of them."""
    task = LocalTask(
        client="1", round_id=3, branch="keep", attempt=0, nominal_records=5, steps=1, planned_steps=9,
        batch_size=5.0,
    )  # fmt: skip
    job = make_private(model, start, noise=1e-12, clip=1e6, ledger=Ledger(), task=task)
    assert train(executor, job) == pytest.approx(-SGD.lr * gradient(model, start, job), abs=1e-6)


def test_private_steps_can_compare_with_a_reference(executor, model, start) -> None:
    """NPO at its own reference has the gradient of gradient ascent times sequence length, privately too."""
    task = LocalTask(
        client="1", round_id=3, branch="keep", attempt=0, nominal_records=5, steps=1, planned_steps=9,
        batch_size=5.0,
    )  # fmt: skip
    more = {"task": task, "objective": NpoLoss(0.5)}
    other = random_arrays(model, 13)
    private = make_private(model, start, noise=1e-12, clip=1e6, ledger=Ledger(), reference=other, **more)
    plain = make_job(model, start, objective=NpoLoss(0.5), reference=other)
    assert train(executor, private) == pytest.approx(train(executor, plain), abs=1e-6)


def test_local_clipping_is_left_to_the_privacy_stage(executor, model, start) -> None:
    """max_grad_norm would shrink the noise, which the accountant does not know of."""
    loose = make_private(model, start, noise=50.0, ledger=Ledger())
    tight = replace(loose, local=loose.local.model_copy(update={"max_grad_norm": 1e-3}), ledger=Ledger())
    assert train(executor, loose).tobytes() == train(executor, tight).tobytes()


def test_an_overspent_budget_is_the_jobs_failure(executor, model, start) -> None:
    config = ExampleDpConfig(target_epsilon=0.5, delta=1e-5, clip_norm=1.0, accountant="rdp")
    ledger = Ledger()
    job = make_private(model, start, noise=1.0, ledger=ledger)
    job = replace(job, rule=ExampleDpRule(config), task=replace(job.task, planned_steps=6))
    assert executor.train_clients([job])[0].error is None
    spent = ledger.releases()
    (second,) = executor.train_clients([replace(job, round=4, task=replace(job.task, round_id=4))])
    assert second.error is not None
    assert "BudgetExceededError" in second.error
    assert ledger.releases() == spent


def test_steps_are_lazy(executor, model, start) -> None:
    """The optimiser acts between two steps: each gradient is taken where the last step led."""
    model.load(start)
    job = make_job(model, start, local=SGD.model_copy(update={"epochs": 2}))
    losses = []
    for loss, _ in _plain_steps(executor, job):
        losses.append(loss)
        with torch.no_grad():
            for parameter in model.parameters().values():
                parameter -= 0.5 * parameter.grad
    model.module.zero_grad(set_to_none=True)
    assert losses[1] < losses[0]
