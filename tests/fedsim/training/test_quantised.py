"""Adapters on layers that compute in their own way, as quantised ones do; tried with weights in 8 bits.

bitsandbytes itself needs a GPU: here a layer stands in that, like its layers, is a `torch.nn.Linear` whose
weight is no matrix of numbers and whose forward pass alone knows what it multiplies with.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from fedsim.config import ConfigError
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.quantising import SCALES_4BIT, base_bytes, check_quantising, is_quantised, loading_options
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohorts import CohortLimit
from fedsim.training.executors import make_executor
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.stacked import why_not_stackable
from tests.fedsim.training.test_cohort import (
    check_trains_like,
    in_fp64,
    make_job,
    make_private,
    shared_rule,
    updates,
)
from tests.world import make_model

UNLIMITED = CohortLimit(clients=100, tokens=10**9)
LORA = LoraConfig(r=2, alpha=6, dropout=0.25)


class Coarse(torch.nn.Linear):
    """Whole numbers from -127 to 127 times a scale."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__(inner.in_features, inner.out_features, bias=inner.bias is not None, device="meta")
        self.bias = inner.bias
        scale = inner.weight.detach().abs().max() / 127
        self.register_buffer("scale", scale)
        codes = (inner.weight.detach() / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)

    def as_numbers(self) -> torch.Tensor:
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.as_numbers(), self.bias)


def coarsened(model: AdapterModel, *, as_numbers: bool = False) -> AdapterModel:
    """The model on coarse layers, or on plain ones with the same numbers."""
    for layer in model.module.modules():
        if isinstance(layer, LoraLayer):
            coarse = Coarse(layer.get_base_layer())
            if as_numbers:
                layer.get_base_layer().weight.data = coarse.as_numbers()
            else:
                layer.base_layer = coarse
    return model


@pytest.fixture(scope="module")
def both(llama_base) -> tuple[AdapterModel, AdapterModel]:
    """Coarse layers, and plain ones with the same numbers."""
    one, two = (in_fp64(make_model(llama_base, lora=LORA)) for _ in range(2))
    return coarsened(one), coarsened(two, as_numbers=True)


@settings(max_examples=10, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch_size=st.integers(1, 4),
    packs=st.booleans(),
)
def test_clients_train_as_on_plain_layers_with_the_same_numbers(both, counts, batch_size, packs) -> None:
    """Together and alone, with dropout, packed and padded."""
    coarse, plain = both
    check_trains_like(coarse, plain, counts, batch_size, packs=packs)


def test_the_cohort_takes_them(both) -> None:
    coarse, _ = both
    assert why_not_stackable(coarse) is None
    assert not isinstance(make_executor([coarse], UNLIMITED), SequentialExecutor)


def test_private_steps_are_those_of_plain_layers(llama_base) -> None:
    lora = LoraConfig(r=2, alpha=6)
    coarse = coarsened(in_fp64(make_model(llama_base, lora=lora)))
    plain = coarsened(in_fp64(make_model(llama_base, lora=lora)), as_numbers=True)
    found = []
    for model in (coarse, plain):
        jobs = shared_rule([make_private(model, client, 5) for client in range(3)])
        found.append(updates(BatchedExecutor(model, UNLIMITED), jobs))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)


def test_a_layer_whose_product_does_not_reach_its_input_is_found_by_gradients(both) -> None:
    """The control of the tests above: they can see a base whose gradient is lost."""
    coarse, plain = both
    layer = next(m for n, m in coarse.module.named_modules() if n.endswith("layers.1.mlp.down_proj"))
    jobs = [make_job(plain, client, 3) for client in range(2)]
    expected = updates(SequentialExecutor(model=plain), jobs)
    layer.base_layer.forward = lambda x: Coarse.forward(layer.base_layer, x).detach()
    try:
        found = updates(BatchedExecutor(coarse, UNLIMITED), jobs)
    finally:
        del layer.base_layer.forward
    assert not np.allclose(found[0], expected[0], rtol=0, atol=1e-7)


def test_they_are_never_merged_nor_is_merging_tried(both, monkeypatch) -> None:
    coarse, _ = both
    monkeypatch.setattr(AdapterModel, "_merged", lambda self: pytest.fail("tried"))
    with coarse.measuring() as module:
        assert module is coarse.module
    layers = [layer for layer in coarse.module.modules() if isinstance(layer, LoraLayer)]
    assert all(is_quantised(layer.get_base_layer()) for layer in layers)


# ------------------------------------------------------------------------------- loading


def test_without_a_gpu_the_key_is_named_and_nothing_is_read() -> None:
    config = ModelConfig(base="no/such/base", quantize="4bit")
    with pytest.raises(ConfigError, match="need a CUDA GPU, and the device is cpu") as raised:
        load_model(config)
    assert raised.value.key == ("quantize",)


def test_without_the_package_its_installation_is_named(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\[gpu\]") as raised:
        check_quantising("8bit", "cuda:0")
    assert raised.value.key == ("quantize",)


def test_quantised_weights_are_not_trained() -> None:
    with pytest.raises(ValueError, match="cannot be trained"):
        ModelConfig(quantize="8bit", lora=None)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda"])
def test_quantised_weights_give_up_nothing(init: str) -> None:
    with pytest.raises(ValueError, match=f"8bit weights cannot give up what lora.init={init} starts with"):
        ModelConfig(quantize="8bit", lora=LoraConfig(init=init))
    assert ModelConfig(quantize="8bit", lora=LoraConfig(init="gaussian")).quantize == "8bit"


def test_transformers_is_asked_for_nf4_with_scales_quantised_again() -> None:
    options = loading_options("4bit", torch.bfloat16, "cuda:1")
    asked = options["quantization_config"]
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == (
        True,
        "nf4",
        True,
    )
    assert asked.bnb_4bit_compute_dtype == torch.bfloat16
    assert options["device_map"] == {"": "cuda:1"}
    assert loading_options("8bit", torch.float16, "cuda:0")["quantization_config"].load_in_8bit
    assert loading_options(None, torch.float32, "cpu") == {}


def test_bytes_by_hand() -> None:
    """4 bits, a byte for each 64 weights, 4 bytes for each 16,384; the head is kept."""

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(256, 128, bias=False, dtype=torch.bfloat16)
            self.head = torch.nn.Linear(128, 10, bias=False, dtype=torch.bfloat16)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    tiny, head = Tiny(), 2 * 1280
    assert pytest.approx(0.5 + 1 / 64 + 4 / 16_384) == 0.5 + SCALES_4BIT
    assert base_bytes(tiny) == 2 * 32_768 + head
    assert base_bytes(tiny, "4bit") == 16_384 + 512 + 8 + head
    assert base_bytes(tiny, "8bit") == 32_768 + 4 * 128 + head
