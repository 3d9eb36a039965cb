"""Many clients at once are many clients one at a time: whole trajectories, private ones, faults."""

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.text import IGNORED, collate
from fedsim.model.vectors import Arrays
from fedsim.training import cohort as cohort_module
from fedsim.training import stacked as stacked_module
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohort import PAYS
from fedsim.training.cohorts import CohortLimit, plan_cohorts, tokens_per_step
from fedsim.training.config import LocalConfig, ScheduleConfig
from fedsim.training.drift import Proximal
from fedsim.training.executors import CoresExecutor, DevicesExecutor, make_executor
from fedsim.training.jobs import TrainJob, shuffled_batches
from fedsim.training.objectives import MeanNll, ReferenceKl
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.stacked import NotStackableError, why_not_stackable
from fedsim.unlearning.methods.grad_ascent import NegatedNll
from fedsim.unlearning.methods.npo import NpoLoss
from privacy import Ledger, LocalTask
from privacy.example_dp import ExampleDpConfig, ExampleDpRule
from tests.world import encode, make_model, make_records, random_arrays, save_opt, word_tokenizer

UNLIMITED = CohortLimit(clients=100, tokens=10**9)
LOCAL = LocalConfig(epochs=1, batch_size=3, lr=0.01)


def make_job(model: AdapterModel, client: int, count: int, **more) -> TrainJob:
    records = make_records(client, count)
    fields = {
        "client": client,
        "round": 3,
        "seed": 9,
        "adapter": start_of(model, 11),
        "pairs": encode(model, records),
        "record_ids": tuple(record.record_id for record in records),
        "local": LOCAL,
        "objective": MeanNll(),
    }
    return TrainJob(**(fields | more))


def start_of(model: AdapterModel, seed: int) -> Arrays:
    """An adapter with deltas, the same whatever the model has just trained."""
    model.fresh(1)
    return random_arrays(model, seed, scale=0.1)


def in_fp64(model: AdapterModel) -> AdapterModel:
    """The model in double precision; Llama-like norms compute in fp32 unless they are replaced."""
    for name, module in list(model.module.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            setattr(model.module.get_submodule(parent), child, norm)
    model.module.double()
    return model


def one_at_a_time(model: AdapterModel, job: TrainJob) -> np.ndarray:
    """The oracle: PEFT's own layers, all logits, an attention mask, torch's own optimiser and clipping."""
    model.load(job.adapter)
    parameters = [model.parameters()[name] for name in model.names]
    start = [parameter.detach().clone() for parameter in parameters]
    if job.local.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            parameters, lr=job.local.lr, momentum=job.local.momentum, weight_decay=job.local.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(parameters, lr=job.local.lr, weight_decay=job.local.weight_decay)
    for positions, rate in zip(shuffled_batches(job), job.local.rates(job.steps), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        batch = collate([job.pairs[position] for position in positions], pad_id=model.pad_id)
        mask = (torch.arange(batch.input_ids_BT.shape[1]) < batch.lengths_B[:, None]).long()
        logits = model.module(input_ids=batch.input_ids_BT, attention_mask=mask, use_cache=False).logits
        losses = [
            torch.nn.functional.cross_entropy(row[:-1], labels[1:], ignore_index=IGNORED)
            for row, labels in zip(logits, batch.labels_BT, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        if job.drift is not None:
            for parameter, begin in zip(parameters, start, strict=True):
                parameter.grad += job.drift.mu * (parameter.detach() - begin)
        if job.local.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, job.local.max_grad_norm)
        optimizer.step()
    moved = [(now.detach() - then).flatten() for now, then in zip(parameters, start, strict=True)]
    return torch.cat(moved).numpy()


def updates(executor: BatchedExecutor | SequentialExecutor, jobs: Sequence[TrainJob]) -> list[np.ndarray]:
    results = executor.train_clients(jobs)
    assert [result.error for result in results] == [None] * len(jobs)
    return [result.update for result in results]


def check_trains_like(
    changed: AdapterModel, plain: AdapterModel, counts: Sequence[int], batch_size: int, *, packs: bool
) -> None:
    """A model gives the updates of another, to clients with so many records, together and alone."""
    local = LocalConfig(epochs=2, batch_size=batch_size, lr=0.01)
    jobs = [make_job(plain, client, count, local=local) for client, count in enumerate(counts)]
    layered = replace(changed)
    vars(layered)["packs_up_to"] = changed.packs_up_to if packs else 0
    expected = updates(SequentialExecutor(model=plain), jobs)
    together = BatchedExecutor(layered, UNLIMITED)
    together._alone = None  # a cohort that fails would train one at a time, unseen
    for executor in (together, SequentialExecutor(model=changed)):
        for one, two in zip(updates(executor, jobs), expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)


# --------------------------------------------------------------------------------- equality


@pytest.fixture(scope="module")
def precise(any_base) -> AdapterModel:
    return in_fp64(make_model(any_base, lora=LoraConfig(r=2, alpha=6)))


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(1, 8), min_size=2, max_size=5),
    batch_size=st.integers(1, 5),
    epochs=st.integers(1, 3),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    max_grad_norm=st.sampled_from([None, 0.5]),
    proximal_mu=st.sampled_from([0.0, 0.5]),
    room=st.integers(2, 5),
    steps=st.none() | st.integers(1, 9),
    micro_batch=st.none() | st.integers(1, 5),
    schedule=st.none() | st.just(ScheduleConfig(shape="linear", over="steps", warmup=0.3)),
)
def test_whole_trajectories_in_fp64(
    precise,
    counts,
    batch_size,
    epochs,
    optimizer,
    weight_decay,
    max_grad_norm,
    proximal_mu,
    room,
    steps,
    micro_batch,
    schedule,
) -> None:
    """Ragged data: clients take different numbers of steps, of different sizes, and finish early."""
    local = LocalConfig(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        micro_batch=None if micro_batch is None else min(micro_batch, batch_size),
        schedule=schedule,
        lr=0.01,
        optimizer=optimizer,
        weight_decay=weight_decay,
        momentum=0.5,
        max_grad_norm=max_grad_norm,
    )
    jobs = [
        make_job(precise, client, count, local=local, drift=Proximal(proximal_mu) if proximal_mu else None)
        for client, count in enumerate(counts)
    ]
    executor = BatchedExecutor(precise, CohortLimit(clients=room, tokens=10**9))
    for job, update in zip(jobs, updates(executor, jobs), strict=True):
        np.testing.assert_allclose(update, one_at_a_time(precise, job), rtol=0, atol=1e-9)


def test_what_a_clients_records_begin_with_alike_is_computed_once(precise, monkeypatch) -> None:
    """Whole trajectories under a long common opening; and fewer places than without sharing."""
    seen = []
    packed = cohort_module.Cohort._packed

    def noting(self, batch, counts):
        layout = packed(self, batch, counts)
        seen.append((len(layout.source_P), int((batch.lengths_B - 1).sum())))
        return layout

    monkeypatch.setattr(cohort_module.Cohort, "_packed", noting)
    jobs = []
    for client, count in enumerate((3, 5)):
        records = [
            replace(record, question=f"w1 w2 w3 w4 w5 w6 w7 w8 {record.question}")
            for record in make_records(client, count)
        ]
        pairs = encode(precise, records)
        jobs.append(
            make_job(precise, client, count, pairs=pairs, local=LOCAL.model_copy(update={"epochs": 3}))
        )
    found = updates(BatchedExecutor(precise, UNLIMITED), jobs)
    for job, update in zip(jobs, found, strict=True):
        np.testing.assert_allclose(update, one_at_a_time(precise, job), rtol=0, atol=1e-9)
    if precise.packs_up_to:
        assert all(places < PAYS * tokens for places, tokens in seen[:2])


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(r=1, alpha=1),
        LoraConfig(r=5, alpha=2, train="B"),
        LoraConfig(r=4, alpha=8, peft={"use_rslora": True}),
        LoraConfig(
            r=4, alpha=8, peft={"rank_pattern": {"q_proj|c_attn": 1}, "alpha_pattern": {"up_proj|c_fc": 1}}
        ),
    ],
    ids=["rank-1", "only-B", "rslora", "patterns"],
)
def test_fp32_gradients(any_base, lora: LoraConfig) -> None:
    """A step of plain SGD with rate 1 is minus the gradient."""
    model = make_model(any_base, lora=lora)
    local = LocalConfig(epochs=1, batch_size=9, lr=1.0, optimizer="sgd", max_grad_norm=None)
    jobs = [make_job(model, client, 2 + client, local=local) for client in range(4)]
    for job, update in zip(jobs, updates(BatchedExecutor(model, UNLIMITED), jobs), strict=True):
        expected = one_at_a_time(model, job)
        assert np.linalg.norm(update - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_half_precision_base_with_adapters_in_full(any_base) -> None:
    """As on a GPU: the base in bf16, what is trained in fp32; both executors round alike but not the same."""
    model = load_model(ModelConfig(base=str(any_base), lora=LoraConfig(r=2, alpha=4), dtype="bfloat16"))
    model = replace(model, tokenizer=word_tokenizer())
    local = LocalConfig(epochs=1, batch_size=9, lr=1.0, optimizer="sgd", max_grad_norm=None)
    jobs = [make_job(model, client, 2 + client, local=local) for client in range(4)]
    alone = updates(SequentialExecutor(model=model), jobs)
    for one, two in zip(updates(BatchedExecutor(model, UNLIMITED), jobs), alone, strict=True):
        assert one.dtype == np.float32
        assert np.linalg.norm(one - two) <= 0.1 * np.linalg.norm(two)


def test_replicas_share_the_cohorts(llama_base) -> None:
    """Two replicas on one device stand for two devices; untrained factors are brought along."""
    lora = LoraConfig(r=2, alpha=4, train="B")
    models = [make_model(llama_base, seed=seed, lora=lora) for seed in (1, 2)]
    jobs = [make_job(models[0], client, 3 + client % 2) for client in range(7)]
    limit = CohortLimit(clients=2, tokens=10**9)
    together = updates(BatchedExecutor(models[0], limit), jobs)
    for allowed in (limit, UNLIMITED):
        split = make_executor(models, allowed)
        assert isinstance(split, DevicesExecutor)
        for one, two in zip(updates(split, jobs), together, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)


def test_every_device_has_its_share_however_much_fits_on_one(llama_base, monkeypatch) -> None:
    models = [make_model(llama_base) for _ in range(3)]
    shares: dict[int, int] = {}
    train = BatchedExecutor.train_cohort

    def noting(self: BatchedExecutor, jobs: Sequence[TrainJob]) -> list:
        shares[id(self)] = shares.get(id(self), 0) + len(jobs)
        return train(self, jobs)

    monkeypatch.setattr(BatchedExecutor, "train_cohort", noting)
    updates(DevicesExecutor(models, UNLIMITED), [make_job(models[0], client, 3) for client in range(7)])
    assert sorted(shares.values()) == [2, 2, 3]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def three_cores(monkeypatch):
    monkeypatch.setattr("fedsim.training.executors.cores", lambda: 3)


@pytest.mark.parametrize("lora", [LoraConfig(r=2, alpha=4), LoraConfig(r=2, alpha=4, train="B")])
@pytest.mark.usefixtures("three_cores", "three_threads")
def test_workers_share_the_base_and_each_cohort_is_as_it_would_be_alone(llama_base, lora) -> None:
    """The same cohorts one after another give the same bytes; one client diverges, one cannot run."""
    model = make_model(llama_base, lora=lora)
    jobs = [make_job(model, client, 3 + client % 2) for client in range(8)]
    jobs[1] = replace(jobs[1], adapter=spoiled(jobs[1].adapter))
    jobs[6] = replace(jobs[6], adapter={"nothing": np.zeros(1, np.float32)})
    limit = CohortLimit(clients=2, tokens=10**9)
    executor = make_executor([model], limit)
    assert isinstance(executor, CoresExecutor)
    found = executor.train_clients(jobs)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    expected = BatchedExecutor(model, limit).train_clients(jobs)
    assert [result.error is None for result in found] == [n not in (1, 6) for n in range(8)]
    assert [one.update.tobytes() for one in found] == [one.update.tobytes() for one in expected]
    frozen = {name for name, p in model.module.named_parameters() if not p.requires_grad}
    for replica in model.replicas(3)[1:]:
        own = dict(replica.module.named_parameters())
        for name, parameter in model.module.named_parameters():
            assert (own[name] is parameter) == (name in frozen)
            assert own[name].requires_grad == parameter.requires_grad


@pytest.mark.usefixtures("three_cores", "three_threads")
@pytest.mark.parametrize(("jobs", "workers"), [(0, 1), (1, 1), (2, 2), (7, 3)])
def test_threads_without_a_cohort_of_their_own_help_others(llama_base, monkeypatch, jobs, workers) -> None:
    model = make_model(llama_base)
    seen = []
    train = BatchedExecutor.train_cohort

    def noting(self: BatchedExecutor, jobs: Sequence[TrainJob]) -> list:
        seen.append((id(self), torch.get_num_threads()))
        return train(self, jobs)

    monkeypatch.setattr(BatchedExecutor, "train_cohort", noting)
    executor = CoresExecutor(model, UNLIMITED)
    updates(executor, [make_job(model, client, 3) for client in range(jobs)])
    assert len(model.replicas(1) + model._replicas) == workers
    assert all(threads == 3 // workers for _, threads in seen)


@pytest.mark.usefixtures("three_cores", "three_threads")
def test_private_workers_are_charged_once_each(llama_base) -> None:
    model = make_model(llama_base)
    jobs = shared_rule([make_private(model, client, 4) for client in range(6)])
    together = updates(CoresExecutor(model, UNLIMITED), jobs)
    alone = updates(SequentialExecutor(model=model), [replace(job, ledger=Ledger()) for job in jobs])
    for job, one, two in zip(jobs, together, alone, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
        assert sum(release.steps for release in job.ledger.releases()) == job.task.steps


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",), r".*\.(o|gate)_proj"])
def test_any_target_modules(llama_base, targets) -> None:
    model = in_fp64(make_model(llama_base, lora=LoraConfig(r=2, alpha=4, target_modules=targets)))
    jobs = [make_job(model, client, 3 + client) for client in range(3)]
    for job, update in zip(jobs, updates(BatchedExecutor(model, UNLIMITED), jobs), strict=True):
        np.testing.assert_allclose(update, one_at_a_time(model, job), rtol=0, atol=1e-9)


def test_different_adapters_and_objectives_go_together(llama_base) -> None:
    """Branches in one pass: own starting points, own losses, own references."""
    model = make_model(llama_base)
    start, reference = start_of(model, 1), start_of(model, 2)
    objectives = [MeanNll(), NegatedNll(), MeanNll(), NpoLoss(0.5), ReferenceKl(), NpoLoss(0.1)]
    jobs = [
        make_job(model, client, 4, adapter=start_of(model, client), objective=objective, reference=reference)
        for client, objective in enumerate(objectives)
    ]
    jobs.append(make_job(model, 0, 4, adapter=start, objective=NegatedNll()))
    together = updates(BatchedExecutor(model, UNLIMITED), jobs)
    for one, two in zip(together, updates(SequentialExecutor(model=model), jobs), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert len({update.tobytes() for update in together}) == len(jobs)


def test_counts_are_those_of_one_at_a_time(llama_base) -> None:
    model = make_model(llama_base)
    jobs = [make_job(model, client, 1 + 2 * client) for client in range(4)]
    jobs[1] = replace(jobs[1], objective=ReferenceKl(), reference=jobs[1].adapter)
    jobs[2] = replace(jobs[2], objective=ReferenceKl(), reference=jobs[2].adapter)
    together = BatchedExecutor(model, UNLIMITED).train_clients(jobs)
    for one, two in zip(together, SequentialExecutor(model=model).train_clients(jobs), strict=True):
        assert (one.client, one.examples, one.steps, one.tokens) == (
            two.client,
            two.examples,
            two.steps,
            two.tokens,
        )
        assert one.loss == pytest.approx(two.loss, abs=1e-5)


def test_the_model_is_left_as_it_was(llama_base) -> None:
    model = make_model(llama_base)
    before = model.arrays()
    updates(BatchedExecutor(model, UNLIMITED), [make_job(model, client, 3) for client in range(3)])
    after = model.arrays()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert not any(module.training for module in model.module.modules())
    assert not any("forward" in module.__dict__ for module in model.module.modules())
    assert model.module.config._attn_implementation == "sdpa"


# ------------------------------------------------------------------- clients do not touch each other


def spoiled(arrays: Arrays) -> Arrays:
    return {name: np.full_like(value, np.nan) for name, value in arrays.items()}


def test_a_client_that_diverges_is_alone_with_it(llama_base) -> None:
    model = make_model(llama_base)
    jobs = [make_job(model, client, 4) for client in range(4)]
    executor = BatchedExecutor(model, UNLIMITED)
    healthy = executor.train_clients(jobs)
    jobs[2] = replace(jobs[2], adapter=spoiled(jobs[2].adapter))
    results = executor.train_clients(jobs)
    assert [result.error is None for result in results] == [True, True, False, True]
    assert "not finite" in str(results[2].error)
    for index in (0, 1, 3):
        assert results[index].update.tobytes() == healthy[index].update.tobytes()


def test_a_job_that_cannot_run_is_its_own_failure(llama_base) -> None:
    model = make_model(llama_base)
    jobs = [make_job(model, client, 4) for client in range(5)]
    jobs[3] = replace(jobs[3], adapter={"nothing": np.zeros(1, np.float32)})
    results = BatchedExecutor(model, UNLIMITED).train_clients(jobs)
    assert [result.error is None for result in results] == [True, True, True, False, True]
    expected = updates(SequentialExecutor(model=model), [jobs[0]])[0]
    np.testing.assert_allclose(results[0].update, expected, atol=2e-5)


def test_clients_without_records_get_no_update(llama_base) -> None:
    model = make_model(llama_base)
    jobs = [make_job(model, client, 3) for client in range(2)]
    empty = replace(jobs[1], pairs=(), record_ids=())
    for order in ([jobs[0], empty], [empty, empty], [empty], []):
        results = BatchedExecutor(model, UNLIMITED).train_clients(order)
        for job, result in zip(order, results, strict=True):
            assert result.error is None
            assert result.update.any() == bool(job.pairs)


# ------------------------------------------------------------------------------------- private


def make_private(model: AdapterModel, client: int, count: int, **numbers) -> TrainJob:
    settings_ = {"noise_multiplier": 0.7, "delta": 1e-5, "clip_norm": 0.3, "accountant": "rdp"} | numbers
    local = LocalConfig(epochs=2, batch_size=2, lr=0.01, optimizer="adamw")
    task = LocalTask(
        client=str(client),
        round_id=3,
        branch="keep",
        attempt=0,
        nominal_records=count,
        steps=2 * -(-count // 2),
        planned_steps=50,
        batch_size=2.0,
    )
    rule = ExampleDpRule(ExampleDpConfig(**settings_))
    return make_job(model, client, count, local=local, rule=rule, task=task, ledger=Ledger())


def shared_rule(jobs: list[TrainJob]) -> list[TrainJob]:
    return [replace(job, rule=jobs[0].rule, ledger=Ledger()) for job in jobs]


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(r=2, alpha=4),
        LoraConfig(r=3, alpha=2, train="B"),
        LoraConfig(r=20, alpha=8, peft={"rank_pattern": {"q_proj|c_attn": 1}}),
    ],
    ids=["low", "only-B", "wider-than-the-layer"],
)
def test_private_cohorts_equal_opacus_client_by_client(any_base, lora: LoraConfig) -> None:
    """Per-sample gradients by Opacus' hooks, the same keyed noise; a Poisson batch may well be empty."""
    model = in_fp64(make_model(any_base, lora=lora))
    jobs = shared_rule([make_private(model, client, count) for client, count in enumerate([1, 4, 7, 4])])
    together = updates(BatchedExecutor(model, UNLIMITED), jobs)
    for job, update in zip(jobs, together, strict=True):
        alone = replace(job, ledger=Ledger())
        updates(SequentialExecutor(model=model), [alone])
        parameters = model.parameters()
        trained = torch.cat([parameters[name].detach().flatten() for name in model.names]).numpy()
        start = np.concatenate([job.adapter[name].astype(np.float64).ravel() for name in model.names])
        np.testing.assert_allclose(update, trained - start, rtol=0, atol=1e-8)
        assert job.ledger.to_json() == alone.ledger.to_json()
        assert sum(release.steps for release in job.ledger.releases()) == job.task.steps


def test_a_record_whose_gradient_is_not_finite_counts_as_zero_and_leaves_the_others_alone(llama_base) -> None:
    """One word's embedding is broken; the record that has it lies in one row with its client's others."""
    model = make_model(llama_base)
    jobs = [make_private(model, client, 4, sample_rate=1.0, noise_multiplier=0.01) for client in range(3)]
    jobs = shared_rule(jobs)
    records_with = Counter(word for job in jobs for pair in job.pairs for word in set(pair.input_ids))
    own = next(word for word, records in records_with.items() if records == 1)
    with torch.no_grad():
        model.module.get_input_embeddings().weight[own] = torch.nan
    together = updates(BatchedExecutor(model, UNLIMITED), jobs)
    alone = updates(SequentialExecutor(model=model), [replace(job, ledger=Ledger()) for job in jobs])
    for one, two in zip(together, alone, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_private_steps_over_a_half_precision_base(any_base) -> None:
    model = load_model(ModelConfig(base=str(any_base), lora=LoraConfig(r=2, alpha=4), dtype="bfloat16"))
    model = replace(model, tokenizer=word_tokenizer())
    jobs = [make_private(model, client, 2 + client, noise_multiplier=1e-3) for client in range(3)]
    local = LocalConfig(epochs=1, batch_size=9, lr=1.0, optimizer="sgd", max_grad_norm=None)
    jobs = [replace(job, local=local, task=replace(job.task, steps=1)) for job in shared_rule(jobs)]
    alone = updates(SequentialExecutor(model=model), [replace(job, ledger=Ledger()) for job in jobs])
    for one, two in zip(updates(BatchedExecutor(model, UNLIMITED), jobs), alone, strict=True):
        assert np.linalg.norm(one - two) <= 0.1 * np.linalg.norm(two)


def test_noise_is_the_clients_own(llama_base) -> None:
    """With all else equal, clients differ by their noise, and a cohort of others changes nothing."""
    model = make_model(llama_base)
    base = make_private(model, 0, 4, noise_multiplier=5.0)
    jobs = [replace(base, client=client, ledger=Ledger()) for client in range(3)]
    first = updates(BatchedExecutor(model, UNLIMITED), jobs)
    assert len({update.tobytes() for update in first}) == 3
    later = [replace(job, ledger=Ledger()) for job in jobs[::-1]]
    again = updates(BatchedExecutor(model, UNLIMITED), later)[::-1]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_private_client_without_budget_is_its_own_failure_and_charges_nobody_twice(llama_base) -> None:
    model = make_model(llama_base)
    jobs = shared_rule(
        [make_private(model, c, 4, noise_multiplier=None, target_epsilon=1.0) for c in range(3)]
    )
    spent = replace(jobs[1].task, steps=500, planned_steps=50)
    jobs[1] = replace(jobs[1], task=spent)
    results = BatchedExecutor(model, UNLIMITED).train_clients(jobs)
    assert [result.error is None for result in results] == [True, False, True]
    assert "target_epsilon" in str(results[1].error)
    assert not jobs[1].ledger.releases()
    for index in (0, 2):
        assert sum(release.steps for release in jobs[index].ledger.releases()) == jobs[index].task.steps


def test_steps_for_which_nobody_is_drawn_are_noise(llama_base) -> None:
    model = make_model(llama_base)
    jobs = shared_rule([make_private(model, c, 4, sample_rate=1e-9) for c in range(3)])
    together = updates(BatchedExecutor(model, UNLIMITED), jobs)
    alone = updates(SequentialExecutor(model=model), [replace(job, ledger=Ledger()) for job in jobs])
    for one, two in zip(together, alone, strict=True):
        assert one.any()
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_noise_of_a_cohort_that_failed_is_charged_once(llama_base, monkeypatch) -> None:
    """It breaks after noise was drawn; what is sent in the end carries that of the repetition alone."""
    model = make_model(llama_base)
    jobs = shared_rule([make_private(model, client, 4) for client in range(3)])
    private = cohort_module.Cohort._private

    def breaking(self: cohort_module.Cohort, step: int) -> torch.Tensor:
        gradient = private(self, step)
        if step == 1 and len(self.jobs) == 3:
            raise RuntimeError("out of memory")
        return gradient

    monkeypatch.setattr(cohort_module.Cohort, "_private", breaking)
    updates(BatchedExecutor(model, UNLIMITED), jobs)
    for job in jobs:
        assert sum(release.steps for release in job.ledger.releases()) == job.task.steps


def test_what_a_failed_cohort_held_is_free_before_its_halves_train(llama_base, monkeypatch) -> None:
    model = make_model(llama_base)
    alive: list[weakref.ref] = []
    train = cohort_module.Cohort.train

    def breaking(self: cohort_module.Cohort) -> list:
        assert not any(one() for one in alive)
        alive.append(weakref.ref(self))
        if len(self.jobs) > 1:
            raise RuntimeError("out of memory")
        return train(self)

    monkeypatch.setattr(cohort_module.Cohort, "train", breaking)
    updates(BatchedExecutor(model, UNLIMITED), [make_job(model, client, 3) for client in range(4)])
    assert len(alive) == 7


# ------------------------------------------------------------------------------------ planning


@given(
    counts=st.lists(st.integers(1, 20), max_size=12),
    clients=st.integers(1, 8),
    tokens=st.integers(1, 400),
)
@settings(max_examples=30, deadline=None)
def test_every_job_is_in_one_cohort_that_fits(any_model, counts, clients, tokens) -> None:
    jobs = [make_job(any_model, client, count) for client, count in enumerate(counts)]
    cohorts = plan_cohorts(jobs, CohortLimit(clients=clients, tokens=tokens))
    assert sorted(index for cohort in cohorts for index in cohort) == list(range(len(jobs)))
    for cohort in cohorts:
        steps = [len(shuffled_batches(jobs[index])) for index in cohort]
        assert steps == sorted(steps, reverse=True)
        assert len(cohort) <= clients
        most = max(tokens_per_step(jobs[index].pairs, LOCAL.batch_size) for index in cohort)
        assert len(cohort) == 1 or len(cohort) * most <= tokens


@pytest.fixture(scope="module")
def any_model(llama_base) -> AdapterModel:
    return make_model(llama_base)


def test_cohorts_are_balanced_and_of_one_kind(any_model) -> None:
    jobs = [make_job(any_model, client, 3) for client in range(10)]
    assert [len(cohort) for cohort in plan_cohorts(jobs, CohortLimit(clients=4, tokens=10**9))] == [4, 3, 3]
    other = LOCAL.model_copy(update={"lr": 0.5})
    jobs[4:6] = [replace(job, local=other) for job in jobs[4:6]]
    assert [4, 5] in plan_cohorts(jobs, UNLIMITED)


def test_one_large_client_leaves_the_others_their_cohorts(any_model) -> None:
    jobs = [make_job(any_model, client, 3) for client in range(12)]
    small = max(tokens_per_step(job.pairs, LOCAL.batch_size) for job in jobs)
    long = jobs[0].pairs[0]
    long = replace(long, input_ids=(*long.input_ids, *[5] * 40))
    jobs.append(make_job(any_model, 12, 3, pairs=(long,) * 3))
    sizes = [len(cohort) for cohort in plan_cohorts(jobs, CohortLimit(clients=99, tokens=4 * small))]
    assert sizes[0] == 1
    assert min(sizes[1:]) >= 3


def test_a_private_step_counts_with_its_own_expected_batch(any_model) -> None:
    """The stage draws all four records a step, whatever local training's batch size."""
    plain = [make_private(any_model, client, 4) for client in range(6)]
    large = [make_private(any_model, client, 4, sample_rate=1.0) for client in range(6)]
    each = max(tokens_per_step(job.pairs, job.local.batch_size) for job in plain)  # two records
    limit = CohortLimit(clients=99, tokens=4 * each)
    assert [len(cohort) for cohort in plan_cohorts(shared_rule(plain), limit)] == [3, 3]
    assert [len(cohort) for cohort in plan_cohorts(shared_rule(large), limit)] == [2, 2, 2]


# ------------------------------------------------------------------------------ what cannot go together


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (None, "all parameters"),
        (LoraConfig(r=2, alpha=4, peft={"use_dora": True}), "variant of LoRA"),
        (LoraConfig(r=2, alpha=4, target_modules=("embed_tokens", "q_proj")), "embed"),
        (LoraConfig(r=2, alpha=4, peft={"modules_to_save": ["norm"]}), "no factor"),
    ],
    ids=["full", "dora", "embedding", "modules-to-save"],
)
def test_what_cannot_be_stacked_says_so(llama_base, lora, reason: str) -> None:
    model = make_model(llama_base, lora=lora)
    assert reason in str(why_not_stackable(model))
    with pytest.raises(NotStackableError, match=reason):
        BatchedExecutor(model, UNLIMITED)


def test_layers_that_are_not_given_rows_are_found_by_trying(tmp_path) -> None:
    """OPT flattens what goes into its feed-forward layers."""
    model = make_model(save_opt(tmp_path))
    assert "fc1 is given (6, 16), not rows of positions" in str(why_not_stackable(model))
    assert isinstance(make_executor([model], UNLIMITED), SequentialExecutor)
    assert not any("forward" in module.__dict__ for module in model.module.modules())


def test_plain_lora_can_be_stacked_and_trying_leaves_no_trace(any_base) -> None:
    model = make_model(any_base)
    before = model.arrays()
    assert why_not_stackable(model) is None
    assert all(value.tobytes() == before[name].tobytes() for name, value in model.arrays().items())


@pytest.mark.parametrize("fault", ["scale", "swapped", "unreached"])
def test_a_joint_pass_that_is_wrong_is_found_by_trying(llama_base, monkeypatch, fault: str) -> None:
    model = make_model(llama_base)
    right = stacked_module._LowRankUpdate.apply

    def wrong(x, a, b, weight, bias, rule, kept):
        if fault == "scale":
            return right(x, a, b, weight, bias, replace(rule, scale=2 * rule.scale), kept)
        if fault == "swapped":
            return right(x, a.flip(0), b.flip(0), weight, bias, rule, kept)
        return torch.nn.functional.linear(x, weight, bias) + 0 * a.sum()

    monkeypatch.setattr(stacked_module._LowRankUpdate, "apply", wrong)
    reason = "no part in a pass" if fault == "unreached" else "differs"
    assert reason in str(why_not_stackable(model))
