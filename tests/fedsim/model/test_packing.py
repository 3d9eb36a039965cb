"""Packed sequences say what padded ones say."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedsim.model.blocks import LIKE, Block, blocks_of
from fedsim.model.config import LoraConfig
from fedsim.model.forward import forward
from fedsim.model.packing import NAME, Packing, longest_packable
from fedsim.model.text import collate
from tests.world import encode, make_model, make_records, random_arrays, save_base


def test_a_packing_by_hand() -> None:
    """Sequences of 2, 1 and 3 positions, the first two in one group."""
    packing = Packing.of(torch.tensor([2, 1, 3]), [2, 1])
    values = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    assert packing.gather(values).tolist() == [1, 2, 3, 4, 5, 6]
    assert packing.positions_P.tolist() == [0, 1, 0, 0, 1, 2]
    assert packing.filled_P.all()
    assert packing.own_BT.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert packing.spread(torch.tensor([7, 8, 9])).tolist() == [7, 7, 8, 9, 9, 9]
    assert packing.apart(torch.arange(6)[:, None])[..., 0].tolist() == [[0, 1, 0], [2, 2, 2], [3, 4, 5]]
    assert (packing.order.tolist(), packing.blocks) == ([0, 1], (Block(groups=2, places=3),))


def test_groups_of_like_size_lie_in_blocks() -> None:
    """Groups of 1, 5 and 4 positions: the last two have five places each, the first one its own."""
    packing = Packing.of(torch.tensor([1, 2, 3, 4]), [1, 2, 1])
    values = torch.tensor([[1, 0, 0, 0], [2, 3, 0, 0], [4, 5, 6, 0], [7, 8, 9, 10]])
    assert packing.order.tolist() == [1, 2, 0]
    assert packing.blocks == (Block(groups=2, places=5), Block(groups=1, places=1))
    assert packing.gather(values).tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]
    assert packing.filled_P.tolist() == [True] * 9 + [False, True]
    assert packing.gather(values)[packing.target_BT][packing.own_BT].tolist() == list(range(1, 11))
    assert packing.source_P[9] == packing.source_P[5]  # padding repeats what its own group begins with
    assert packing.spread(torch.tensor([1, 2, 3, 4])).tolist() == [2, 2, 3, 3, 3, 4, 4, 4, 4, 0, 1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_blocks_hold_every_group_and_waste_little(sizes: list[int]) -> None:
    order, blocks = blocks_of(np.array(sizes))
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert sum(block.groups for block in blocks) == len(sizes)
    places = [block.places for block in blocks for _ in range(block.groups)]
    assert all(sizes[group] <= room for group, room in zip(order, places, strict=True))
    assert LIKE * sum(places) <= sum(sizes) + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1000))
def test_packed_is_padded(packable, counts: list[int], seed: int) -> None:
    pairs = encode(packable, make_records(seed, sum(counts)))
    batch = collate(pairs, pad_id=packable.pad_id)
    packing = Packing.of(batch.lengths_B - 1, counts)
    padded, packed = (forward(packable.module, batch, how) for how in (None, packing))
    torch.testing.assert_close(packed.nll_B, padded.nll_B, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.logits_NV, padded.logits_NV, rtol=1e-4, atol=1e-5)
    parameters = list(packable.parameters().values())
    gradients = [torch.autograd.grad(one.mean_nll.sum(), parameters) for one in (padded, packed)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_what_a_group_begins_with_alike_has_one_place_in_it() -> None:
    """Sequences 1 2 3, 1 2 4 in one group and 1 2 in another: 4 and 2 places, nothing shared across."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 0]])
    packing = Packing.of(torch.tensor([3, 3, 2]), [2, 1], ids_BT=ids)
    assert packing.order.tolist() == [0, 1]
    assert packing.blocks == (Block(groups=1, places=4), Block(groups=1, places=2))
    assert packing.gather(ids).tolist() == [1, 2, 3, 4, 1, 2]
    assert packing.target_BT.tolist() == [[0, 1, 2], [0, 1, 3], [4, 5, 4]]
    assert packing.positions_P.tolist() == [0, 1, 2, 2, 0, 1]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.sampled_from(["", "w1 w2 w3 w4 w5", "w1"]),
)
def test_shared_beginnings_change_nothing(packable, counts: list[int], seed: int, opening: str) -> None:
    """Losses and gradients, also of records that are all there twice."""
    records = [
        replace(record, question=f"{opening} {record.question}".strip())
        for record in make_records(seed % 7, -(-sum(counts) // 2))
    ]
    batch = collate(encode(packable, [*records, *records][: sum(counts)]), pad_id=packable.pad_id)
    packing = Packing.of(batch.lengths_B - 1, counts, ids_BT=batch.input_ids_BT)
    apart = Packing.of(batch.lengths_B - 1, counts)
    assert int(packing.filled_P.sum()) <= int(apart.filled_P.sum())
    padded, shared = (forward(packable.module, batch, how) for how in (None, packing))
    torch.testing.assert_close(shared.nll_B, padded.nll_B, rtol=1e-5, atol=1e-5)
    parameters = list(packable.parameters().values())
    gradients = [torch.autograd.grad(one.mean_nll.sum(), parameters) for one in (padded, shared)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def packable(request, tmp_path_factory):
    model = make_model(save_base(tmp_path_factory.mktemp("base"), request.param))
    model.load(random_arrays(model, 5))
    return model


def test_a_window_shorter_than_the_sequences_cannot_be_packed(any_base) -> None:
    model = make_model(any_base)
    windowed = getattr(model.module.config, "sliding_window", None) == 4
    assert longest_packable(model.module) == (4 if windowed else sys.maxsize)


def test_a_model_whose_attention_does_not_take_rows_apart_is_found_out(llama_base) -> None:
    model = make_model(llama_base)
    ours = ALL_ATTENTION_FUNCTIONS[NAME]
    ALL_ATTENTION_FUNCTIONS.register(NAME, sdpa_attention_forward)
    try:
        assert longest_packable(model.module) == 0
    finally:
        ALL_ATTENTION_FUNCTIONS.register(NAME, ours)
    assert longest_packable(model.module) > 0


def test_a_model_whose_attention_is_its_own_is_found_out(llama_base, monkeypatch) -> None:
    """In half precision the outcome alone may look right; that attention was asked is what counts."""
    model = make_model(llama_base)
    monkeypatch.setattr(
        "fedsim.model.packing.NAME", "eager"
    )  # takes rows apart by its mask, without our help
    assert longest_packable(model.module) == 0


@pytest.mark.parametrize(("noise", "packs"), [(2e-5, True), (1e-2, False)])
def test_rounding_is_told_from_another_outcome(llama_base, noise: float, packs: bool) -> None:
    """Thirty layers and two threads leave differences of 2e-6 of the largest logit in single precision."""
    model = make_model(llama_base)
    generator = torch.Generator().manual_seed(1)

    def blurred(module: object, given: object, logits: torch.Tensor) -> torch.Tensor:
        return logits + noise * logits.abs().max() * torch.randn(logits.shape, generator=generator)

    with model.module.get_output_embeddings().register_forward_hook(blurred):
        assert (longest_packable(model.module) > 0) == packs


def test_trying_leaves_what_is_trained_as_it_was(llama_base) -> None:
    model = make_model(llama_base, lora=LoraConfig(r=2, alpha=4, train="B"))
    assert model.packs_up_to > 0
    assert {name for name, p in model.module.named_parameters() if p.requires_grad} == set(model.names)


def test_what_is_in_place_does_not_decide(llama_base) -> None:
    model = make_model(llama_base)
    model.load({name: np.full_like(value, np.nan) for name, value in model.arrays().items()})
    assert model.packs_up_to > 0
