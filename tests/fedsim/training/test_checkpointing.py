"""Blocks that are computed again: the same gradients from less memory, whatever stands around a pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config import ConfigError
from fedsim.model.adapter import AdapterModel
from fedsim.model.checkpointing import blocks_that_repeat
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.training.batched import BatchedExecutor
from fedsim.training.cohort import Cohort
from fedsim.training.cohorts import CohortLimit
from fedsim.training.sequential import SequentialExecutor
from fedsim.training.stacked import StackedLora
from tests.fedsim.training.test_cohort import (
    check_trains_like,
    in_fp64,
    make_job,
    make_private,
    shared_rule,
    updates,
)
from tests.world import make_model, save_opt, word_tokenizer

UNLIMITED = CohortLimit(clients=100, tokens=10**9)
LORA = LoraConfig(r=2, alpha=6, dropout=0.25)


def loaded(base, **more) -> AdapterModel:
    model = load_model(ModelConfig(base=str(base), **({"lora": LORA} | more)))
    model.fresh(1)
    return replace(model, tokenizer=word_tokenizer())


@pytest.fixture(scope="module")
def both(any_base) -> tuple[AdapterModel, AdapterModel]:
    """With checkpointing, and without."""
    return in_fp64(loaded(any_base, checkpointing=True)), in_fp64(loaded(any_base))


def kept_bytes(model: AdapterModel, jobs) -> int:
    """What autograd keeps of the first step's pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in (*model.module.parameters(), *model.module.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x
        return x

    cohort = Cohort(StackedLora(model), jobs)
    positions = [cohort.batches[client][0] for client in range(len(jobs))]
    leaves = cohort.lora.leaves(cohort.vectors_KD.detach())
    own |= {leaf.untyped_storage().data_ptr() for leaf in leaves.values()}
    with model.training(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        cohort._losses(leaves, cohort._lay_out(positions), positions, 0)
    return sum(x.untyped_storage().nbytes() for x in seen.values())


@settings(max_examples=10, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch_size=st.integers(1, 4),
    packs=st.booleans(),
)
def test_updates_are_those_without(both, counts, batch_size, packs) -> None:
    """Together and alone, with dropout, packed and padded."""
    again, plain = both
    check_trains_like(again, plain, counts, batch_size, packs=packs)


def test_masks_that_were_drawn_anew_would_be_seen(both, monkeypatch) -> None:
    """The control of the test above."""
    again, plain = both
    monkeypatch.setitem(vars(again), "checkpoints", False)  # masks do not repeat
    jobs = [make_job(plain, client, 3) for client in range(2)]
    expected = updates(SequentialExecutor(model=plain), jobs)
    found = updates(BatchedExecutor(again, UNLIMITED), jobs)
    assert not np.allclose(found[0], expected[0], rtol=0, atol=1e-7)


def test_private_steps_are_those_without(llama_base) -> None:
    lora, found = LoraConfig(r=2, alpha=6), []
    for checkpointing in (True, False):
        model = in_fp64(loaded(llama_base, lora=lora, checkpointing=checkpointing))
        jobs = shared_rule([make_private(model, client, 5) for client in range(3)])
        found.append(updates(BatchedExecutor(model, UNLIMITED), jobs))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)


def test_less_is_kept(both) -> None:
    """Of two blocks, what goes in and no more: less than half of what they keep."""
    again, plain = both
    kept = [
        kept_bytes(model, [make_job(model, client, 4) for client in range(2)]) for model in (again, plain)
    ]
    assert kept[0] < 0.5 * kept[1]


def test_full_training_keeps_the_bases_own_dropout(gpt2_base) -> None:
    """Blocks are computed again under the dropout that they had."""
    found = []
    for checkpointing in (True, False):
        model = loaded(gpt2_base, lora=None, checkpointing=checkpointing)
        found.append(updates(SequentialExecutor(model=model), [make_job(model, 0, 3)])[0])
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)


def test_measuring_computes_nothing_again(both) -> None:
    again, _ = both
    blocks = blocks_that_repeat(again.module)
    assert len(blocks) == 2
    with again.training():
        assert all(block.training for block in blocks)
    assert not any(block.training for block in blocks)


def test_blocks_with_a_dropout_of_their_own_are_refused(tmp_path) -> None:
    """OPT's blocks drop by themselves once they are in training mode."""
    save_opt(tmp_path, dropout=0.5)
    with pytest.raises(ConfigError, match="drop some of what they compute") as raised:
        load_model(ModelConfig(base=str(tmp_path), checkpointing=True))
    assert raised.value.key == ("checkpointing",)


# ----------------------------------------------------------------------------- attention


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_the_one_that_is_named(any_base, attention: str) -> None:
    model = loaded(any_base, attention=attention)
    assert model.module.config._attn_implementation == attention
    assert (model.packs_up_to == 0) == (attention == "eager")


def test_packed_rows_are_computed_by_the_named_attention(llama_base, monkeypatch) -> None:
    """Sequences are taken apart for it, one a row, and it is told no places of the row."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen: list[tuple[int, bool]] = []

    def named(module, query, key, value, mask, **settings):
        seen.append((len(query), mask is None and "position_ids" not in settings))
        return sdpa_attention_forward(module, query, key, value, mask, **settings)

    AttentionInterface.register("named-here", named)
    AttentionMaskInterface.register("named-here", sdpa_mask)
    model = make_model(llama_base)
    model.module.config._attn_implementation = "named-here"
    model.module.base_model.model.config._attn_implementation = "named-here"
    assert model.packs_up_to > 0
    seen.clear()
    jobs = [make_job(model, client, 3) for client in range(2)]
    updates(BatchedExecutor(model, UNLIMITED), jobs)
    assert set(seen) == {(6, True)}


def test_flash_attention_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match="needs a CUDA GPU") as raised:
        load_model(ModelConfig(base="tiny-authors", attention="flash_attention_2"))
    assert raised.value.key == ("attention",)
