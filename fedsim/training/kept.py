"""What a joint step keeps for its backward pass, counted by sending shapes through the model.

A copy of the model without memory, on torch's meta device, takes the same path as a cohort: every tensor
that autograd saves has its size there. Attention is counted as fused kernels keep it, by what goes in, what
comes out and a number a row (Dao et al., "FlashAttention" (2022), arXiv:2205.14135); eager one as it is.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from fedsim.model.adapter import AdapterModel
from fedsim.model.blocks import Block
from fedsim.model.checkpointing import switch_on
from fedsim.model.quantising import is_quantised
from fedsim.training.dropout import Masks, drops
from fedsim.training.stacked import StackedLora, why_not_plain

NAME = "fedsim-counted"
TOKENS = 32
"""Tokens that are sent through where what is kept goes by their number alone."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes per token of a step, each counted as one of an answer.

    ``whole`` is kept by a pass without checkpointing; ``inputs`` by one whose blocks are computed again, when
    each keeps ``block`` for a while. ``logits`` is a float32 number for each word of the vocabulary; the loss
    keeps as many. ``passing`` comes and goes in the backward pass of a block's widest layer.
    """

    whole: float
    block: float
    inputs: float
    logits: float
    passing: float

    def peak(self, *, checkpointing: bool) -> float:
        """Most that is held at once: at the loss, with two gradients of logits, or at the last block."""
        kept, again = (self.inputs, self.block) if checkpointing else (self.whole, 0.0)
        return max(kept + 2 * self.logits, kept - self.logits + again + self.passing)


_known: weakref.WeakKeyDictionary[torch.nn.Module, Kept] = weakref.WeakKeyDictionary()


def kept_per_token(model: AdapterModel) -> Kept:
    """Counted once for a model; from sizes alone if it cannot go without memory."""
    if model.module not in _known:
        try:
            _known[model.module] = _counted(model)
        except Exception:  # a base may look at its numbers, and there are none
            _known[model.module] = by_sizes(model)
    return _known[model.module]


def by_sizes(model: AdapterModel) -> Kept:
    """About the same of a base like Llama, from its configuration."""
    module: Any = model.module
    config = module.config.get_text_config()
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = next(iter(module.parameters())).element_size()
    block = width * (6 * hidden + 4 * inner) + 8.0 * hidden
    logits = 4.0 * config.vocab_size
    return Kept(
        whole=config.num_hidden_layers * block + logits,
        block=block,
        inputs=width * hidden * config.num_hidden_layers + logits,
        logits=logits,
        passing=inner * (2 * width + 4.0),
    )


def _counted(model: AdapterModel) -> Kept:
    twin = without_memory(model)
    module: Any = twin.module
    config = module.config.get_text_config()
    eager = module.config._attn_implementation == "eager"
    tokens = model.fmt.max_tokens if eager else TOKENS
    if not eager:
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        for own in (module.config, config):
            own._attn_implementation = NAME
    blocks = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    for block in blocks:
        block.gradient_checkpointing = False
    whole, largest = _saved(twin, tokens, blocks)
    inputs = whole
    if blocks:
        switch_on(module)
        inputs, _ = _saved(replace(twin), tokens, [])
    return Kept(
        whole=whole / tokens,
        block=largest / tokens,
        inputs=inputs / tokens,
        logits=4.0 * config.vocab_size,
        passing=_passing(module),
    )


def _passing(module: Any) -> float:
    """Bytes per token that come and go in a block: two gradients of its widest layer, an input in float32.

    That input is an adapted layer's; dropout masks it once more.
    """
    adapted: list[Any] = [m.get_base_layer() for m in module.modules() if isinstance(m, LoraLayer)]
    widest = max((int(max(layer.weight.shape)) for layer in adapted), default=0)
    return _widest(module) * 2 * _type_of(module).itemsize + widest * (8.0 if drops(module) else 4.0)


def _widest(module: Any) -> int:
    """Features of the widest layer of the blocks, which embeds no words and gives no logits."""
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    outer = {id(p) for end in ends if end is not None for p in end.parameters()}
    return max(int(max(p.shape)) for p in module.parameters() if p.dim() == 2 and id(p) not in outer)


def _type_of(module: torch.nn.Module) -> torch.dtype:
    """The number type that frozen weights compute in; that of all where none is frozen."""
    kinds = [(p.requires_grad, p.dtype) for p in module.parameters() if p.is_floating_point()]
    return min(kinds, key=lambda kind: kind[0])[1]


def without_memory(model: AdapterModel) -> AdapterModel:
    """A copy of a model on the meta device; quantised layers are plain ones there."""
    module = model.module
    tensors = (*module.named_parameters(), *module.named_buffers())
    memo = {id(x): _bare(x) for _, x in tensors}
    twin = copy.deepcopy(module, memo)
    for path, part in list(twin.named_modules()):
        if isinstance(part, torch.nn.Linear) and is_quantised(part):
            sizes = part.in_features, part.out_features, part.bias is not None
            plain = torch.nn.Linear(*sizes, device="meta", dtype=_type_of(module))
            twin.set_submodule(path, plain.requires_grad_(False))
    return replace(model, module=twin, device="meta")


def _bare(x: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(x, device="meta")
    if isinstance(x, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=x.requires_grad)
    return empty


def _saved(model: AdapterModel, tokens: int, blocks: list[Any]) -> tuple[float, float]:
    """Bytes that a pass over so many tokens and its losses save, and the most that one of the blocks does."""
    module: Any = model.module
    count = _Count(module, blocks)
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, tokens, tokens, device="meta", dtype=module.get_input_embeddings().weight.dtype)
    with model.training(), _applied(model, tokens, count) as applied, count.counting():
        logits = applied(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        kept = torch.nn.functional.cross_entropy(logits, ids[0], reduction="none")
    del kept
    return count.total(), count.most()


@contextmanager
def _applied(model: AdapterModel, tokens: int, count: _Count) -> Iterator[Any]:
    """The module with a stack of one client's factors, or as it is where its layers are no plain LoRA."""
    if why_not_plain(model) is not None:
        yield model.module
        return
    lora = StackedLora(model)
    vectors_KD = torch.empty(1, lora.dimension, device="meta", dtype=lora.dtype)
    count.leave_out(vectors_KD)
    masks = _NoMasks(tokens) if lora.drops else None
    with lora.applied(lora.leaves(vectors_KD), [Block(groups=1, places=tokens)], None, masks) as module:
        yield module


class _NoMasks(Masks):
    """Masks that have a size and nothing in them."""

    def __init__(self, places: int) -> None:
        self.places = places

    def draw(self, layer: object, rate: float, features: int) -> torch.Tensor:
        return torch.empty(self.places, features, dtype=torch.bool, device="meta")


class _Count:
    """Storages that autograd saves, once each, by the block in which they were saved first."""

    def __init__(self, module: torch.nn.Module, blocks: list[Any]) -> None:
        self._sizes: dict[int, tuple[int, torch.Tensor]] = {}
        self._by_block: dict[int, int] = {}
        self._block = -1
        self._own = {_key(x) for x in (*module.parameters(), *module.buffers())}
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._enter(number))
            block.register_forward_hook(self._enter(-1))

    def leave_out(self, x: torch.Tensor) -> None:
        """Count a tensor no more: it is there anyway."""
        self._own.add(_key(x))

    def _enter(self, number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._block = number

        return hook

    def counting(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        key = _key(x)
        if key not in self._own and key not in self._sizes:
            size = x.untyped_storage().nbytes()
            self._sizes[key] = size, x
            self._by_block[self._block] = self._by_block.get(self._block, 0) + size
        return x

    def total(self) -> float:
        return float(sum(size for size, _ in self._sizes.values()))

    def most(self) -> float:
        return float(max((size for number, size in self._by_block.items() if number >= 0), default=0))


def _key(x: torch.Tensor) -> int:
    return int(x.untyped_storage()._cdata)


class _FusedAttention(torch.autograd.Function):
    """Nothing but what a fused kernel keeps: (B, H, T, D) in, the same out, a number a row."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out


def _attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row, which is taken apart and put back: what leaves it is a copy."""
    copies = query_BHTD.clone(), key_BHTD.clone(), value_BHTD.clone()
    out: torch.Tensor = _FusedAttention.apply(*copies)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).clone(), None
