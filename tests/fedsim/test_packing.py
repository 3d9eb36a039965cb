"""Packed sequences say what padded ones say."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedsim.forward import forward
from fedsim.packing import NAME, Packing, longest_packable
from fedsim.text import collate
from tests.world import encode, make_model, make_records, random_arrays, save_base


def test_a_packing_by_hand() -> None:
    """Sequences of 2, 1 and 3 positions, the first two in one row."""
    packing = Packing.of(torch.tensor([2, 1, 3]), [2, 1])
    values = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    assert packing.gather(values).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert packing.positions_SP.tolist() == [[0, 1, 0], [0, 1, 2]]
    assert packing.filled_SP.all()
    ragged = Packing.of(torch.tensor([2, 3]), [1, 1])
    assert ragged.gather(values[:2]).tolist() == [[1, 2, 0], [3, 0, 0]]
    assert ragged.filled_SP.tolist() == [[True, True, False], [True, True, True]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1000))
def test_packed_is_padded(packable, counts: list[int], seed: int) -> None:
    pairs = encode(packable, make_records(seed, sum(counts)))
    batch = collate(pairs, pad_id=packable.pad_id)
    padded, packed = (forward(packable.module, batch, packed=how) for how in (None, counts))
    torch.testing.assert_close(packed.nll_B, padded.nll_B, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.logits_NV, padded.logits_NV, rtol=1e-4, atol=1e-5)
    parameters = list(packable.parameters().values())
    gradients = [torch.autograd.grad(one.mean_nll.sum(), parameters) for one in (padded, packed)]
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
    monkeypatch.setattr("fedsim.packing.NAME", "eager")  # takes rows apart by its mask, without our help
    assert longest_packable(model.module) == 0


def test_what_is_in_place_does_not_decide(llama_base) -> None:
    model = make_model(llama_base)
    model.load({name: np.full_like(value, np.nan) for name, value in model.arrays().items()})
    assert model.packs_up_to > 0
