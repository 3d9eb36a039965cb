"""Dropout of LoRA's input: masks are a record's own, so clients lose together what they lose alone."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig
from fedsim.model.packing import Packing, Padded
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.training.dropout import Masks, dropping, drops, streams
from fedsim.training.jobs import TrainJob
from fedsim.training.objectives import ReferenceKl
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.stacked import why_not_stackable
from tests.fedsim.training.test_cohort import in_fp64, make_job, start_of, updates
from tests.world import make_model

HALF = LoraConfig(r=2, alpha=6, dropout=0.5)


@pytest.fixture(scope="module")
def precise(any_base) -> AdapterModel:
    return in_fp64(make_model(any_base, lora=HALF))


def masks_of(seed: int, lengths: list[int], layout: Packing | Padded, *names: str) -> Masks:
    model_free = [torch.Generator().manual_seed(seed + index) for index in range(len(lengths))]
    return Masks(model_free, torch.tensor(lengths), layout)


@settings(max_examples=10, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch_size=st.integers(1, 4),
    micro_batch=st.none() | st.just(1),
    room=st.integers(2, 4),
    packs=st.booleans(),
)
def test_together_as_alone(precise, counts, batch_size, micro_batch, room, packs) -> None:
    """Packed and padded, whole steps and parts of them."""
    local = LocalConfig(epochs=2, batch_size=batch_size, micro_batch=micro_batch, lr=0.01)
    jobs = [make_job(precise, client, count, local=local) for client, count in enumerate(counts)]
    model = replace(precise)
    vars(model)["packs_up_to"] = precise.packs_up_to if packs else 0
    together = updates(BatchedExecutor(model, CohortLimit(clients=room, tokens=10**9)), jobs)
    alone = updates(SequentialExecutor(model=precise), jobs)
    for one, two in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)  # updates are fp32


def test_a_step_is_that_of_an_adapter_whose_input_is_masked_by_hand(llama_base) -> None:
    """One adapted layer: its low-rank path sees the input times mask over 1 - p, the base all of it."""
    lora = LoraConfig(r=2, alpha=4, dropout=0.25, target_modules=("q_proj",), peft={"layers_to_transform": 0})
    model = in_fp64(make_model(llama_base, lora=lora))
    job = make_job(model, 1, 1)
    model.load(job.adapter)
    layer = next(m for n, m in model.module.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    (pair,) = job.pairs
    ids = torch.tensor([pair.input_ids[:-1]])
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    masks = Masks(streams(job, 0, [0], "cpu"), torch.tensor([ids.shape[1]]), Padded.of([1], ids.shape[1]))
    with torch.no_grad(), model.training(), dropping(model.module, masks):
        model.module(input_ids=ids)
    handle.remove()
    x, out = seen
    (stream,) = streams(job, 0, [0], "cpu")
    kept = torch.empty(ids.shape[1], x.shape[-1]).bernoulli_(0.75, generator=stream)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.get_base_layer().weight.T + 2 * (x * kept / 0.75) @ a.T @ b.T
    torch.testing.assert_close(out, expected)
    assert 0 < kept.mean() < 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.data())
def test_masks_do_not_depend_on_where_a_text_lies(lengths, data) -> None:
    counts = []
    while sum(counts) < len(lengths):
        counts.append(data.draw(st.integers(1, len(lengths) - sum(counts))))
    longest = max(lengths)
    own = torch.arange(longest) < torch.tensor(lengths)[:, None]
    found = []
    for layout in (Packing.of(torch.tensor(lengths), counts), Padded.of(counts, longest)):
        masks = masks_of(5, lengths, layout)
        drawn = [masks.draw(layer, 0.5, 3) for layer in range(2)]
        assert all(int(one.sum()) <= 3 * sum(lengths) for one in drawn)
        found.append([layout.apart(one.float())[own] for one in drawn])
    for packed, padded in zip(*found, strict=True):
        assert torch.equal(packed, padded)


def test_about_as_much_is_kept_as_asked() -> None:
    """Negative control: a rate of .5 keeps another share."""
    layout = Padded.of([1], 400)
    shares = [float(masks_of(1, [400], layout).draw(0, rate, 100).float().mean()) for rate in (0.1, 0.5)]
    assert shares[0] == pytest.approx(0.9, abs=5 * (0.09 / 40_000) ** 0.5)
    assert shares[1] != pytest.approx(0.9, abs=5 * (0.09 / 40_000) ** 0.5)


def test_a_record_keeps_its_masks_whoever_is_asked_beside_it(llama_base) -> None:
    model = make_model(llama_base, lora=HALF)
    job = make_job(model, 1, 4)
    alone = streams(job, 2, [3], "cpu")[0].initial_seed()
    beside = [one.initial_seed() for one in streams(job, 2, [0, 3], "cpu")]
    assert beside[1] == alone
    others = {one.initial_seed() for step in range(5) for one in streams(job, step, range(4), "cpu")}
    assert len(others) == 20
    assert streams(replace(job, round=4), 2, [3], "cpu")[0].initial_seed() != alone
    assert streams(replace(job, client=2), 2, [3], "cpu")[0].initial_seed() != alone


def test_nothing_is_dropped_under_the_reference(precise) -> None:
    """A retain term at its own reference is zero without dropout; here only the current model has it."""
    start = start_of(precise, 3)
    jobs = [
        make_job(precise, client, 3, adapter=start, reference=start, objective=ReferenceKl())
        for client in range(2)
    ]
    together = BatchedExecutor(precise, CohortLimit(clients=2, tokens=10**9)).train_clients(jobs)
    alone = SequentialExecutor(model=precise).train_clients(jobs)
    for one, two in zip(together, alone, strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-6)
        assert one.loss > 1e-4


def test_a_model_with_dropout_can_be_stacked_and_is_left_without_a_trace(any_base) -> None:
    model = make_model(any_base, lora=HALF)
    assert why_not_stackable(model) is None
    assert drops(model.module)
    assert not drops(make_model(any_base).module)
    jobs: list[TrainJob] = [make_job(model, client, 3) for client in range(2)]
    updates(SequentialExecutor(model=model), jobs)
    updates(BatchedExecutor(model, CohortLimit(clients=2, tokens=10**9)), jobs)
    gc.collect()
    assert not any("forward" in module.__dict__ for module in model.module.modules())
