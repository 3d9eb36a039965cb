"""What enters the attention of a block: which adapted layers see it, and what it is for given tokens.

The queries, keys and values of a block are made from one input. In the first block it depends on a token and,
in some families, on its position; deeper down on all tokens before it too. Legend: N sequences, T positions,
E width of the input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer

from fedsim.model.adapter import AdapterModel
from fedsim.model.forward import evaluating

VALUES = ("v_proj", "c_attn", "qkv_proj", "query_key_value")
"""Layers that make values: alone, or with queries and keys in one."""
BESIDE = ("q_proj", "k_proj")
"""Layers that have the same input as ``v_proj``."""
CHUNK = 2048
"""Sequences that are run at once."""


class _Reached(Exception):  # noqa: N818  # no error: what was asked for is known
    """Ends a forward pass."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """The attention of one block, with the LoRA layers that see its input.

    ``value`` is the module path of the layer that makes values. Every position that another one attends to
    has a gradient there; queries have none at the first position. ``layers`` are all that see the input,
    ``value`` first.
    """

    block: int
    layers: tuple[str, ...]

    @property
    def value(self) -> str:
        return self.layers[0]

    def factor(self, model: AdapterModel, layer: str, which: str) -> NDArray[np.float64]:
        """A (r, E) or B (out, r) of a layer, as they are in the module."""
        factors = getattr(model.module.get_submodule(layer), f"lora_{which}")
        weight: torch.Tensor = factors["default"].weight
        return weight.detach().cpu().double().numpy()


def attention_sites(model: AdapterModel) -> tuple[Site, Site]:
    """The first block's attention and that of the next block that has an adapter.

    Raises:
        ValueError: there is no LoRA on the values of the first block, or of no other one.
    """
    adapted = {name: m for name, m in model.module.named_modules() if isinstance(m, LoraLayer)}
    sites = {}
    for name in adapted:
        found = re.fullmatch(rf"(?:.*\.)?(\d+)\.(.*\.)?({'|'.join(VALUES)})", name)
        if found:
            stem = name.removesuffix(found[3])
            beside = [stem + other for other in BESIDE if stem + other in adapted]
            sites[int(found[1])] = Site(block=int(found[1]), layers=(name, *beside))
    if 0 not in sites or len(sites) < 2:
        have = f"blocks {sorted(sites)}" if sites else "no block"
        raise ValueError(
            f"base={model.base_name!r} has LoRA on attention values in {have}; the attack needs the first "
            "block (0) and another one; give target_modules as all-linear, or with what makes values among "
            f"{', '.join(VALUES)}"
        )
    return sites[0], sites[min(block for block in sites if block > 0)]


def attention_inputs(
    model: AdapterModel, site: Site, ids_NT: NDArray[np.int64], *, first_position: int = 0
) -> NDArray[np.float64]:
    """What enters a block's attention at the last position of each sequence, (N, E).

    The adapter is the loaded one. Sequences begin at ``first_position``. What is behind is not computed.
    """
    layer = model.module.get_submodule(site.value)
    module: Any = model.module
    captured: list[torch.Tensor] = []

    def capture(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        captured.append(arguments[0][:, -1].detach().cpu().double())
        raise _Reached

    handle = layer.register_forward_pre_hook(capture)
    try:
        for begin in range(0, len(ids_NT), CHUNK):
            ids = torch.from_numpy(ids_NT[begin : begin + CHUNK]).to(model.device)
            positions = torch.arange(first_position, first_position + ids.shape[1], device=model.device)
            try:
                module(input_ids=ids, position_ids=positions.expand_as(ids), use_cache=False)
            except _Reached:
                continue
    finally:
        handle.remove()
    return torch.cat(captured).numpy()


@contextmanager
def holding(model: AdapterModel, adapter: Mapping[str, NDArray[Any]]) -> Iterator[None]:
    """The model with an adapter in place, in evaluation mode and without gradients; as before afterwards."""
    before = model.arrays()
    model.load(adapter)
    try:
        with evaluating(model.module), torch.no_grad():
            yield
    finally:
        model.load(before)
