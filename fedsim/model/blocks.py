"""Groups of places in a row, by blocks of equally many places each, and products group by group.

Legend: G groups, P places, K groups of a block, M places of one of them, O, I and F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

ROOMY = 1.1
"""Places per position up to which one block is good enough."""
LIKE = 0.8
"""Share of a block's places that each of its groups fills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Neighbouring groups with equally many places each."""

    groups: int
    places: int


def blocks_of(sizes_G: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[Block, ...]]:
    """In which order groups of so many positions lie, and the blocks they form.

    One block and the order as it is, unless that wastes places; then the largest group comes first.

    >>> order, blocks = blocks_of(np.array([9, 30, 10]))
    >>> order.tolist(), [(block.groups, block.places) for block in blocks]
    ([1, 2, 0], [(1, 30), (2, 10)])
    """
    if len(sizes_G) * sizes_G.max() <= ROOMY * sizes_G.sum():
        return np.arange(len(sizes_G)), (Block(groups=len(sizes_G), places=int(sizes_G.max())),)
    order = np.argsort(-sizes_G, kind="stable")
    blocks: list[Block] = []
    start = 0
    while start < len(order):
        widest = int(sizes_G[order[start]])
        groups = int((sizes_G[order[start:]] >= LIKE * widest).sum())
        blocks.append(Block(groups=groups, places=widest))
        start += groups
    return order, tuple(blocks)


def split(x_PF: torch.Tensor, blocks: Sequence[Block]) -> list[torch.Tensor]:
    """Features by place as views (groups, places, F), one for each block."""
    parts = torch.split(x_PF, [block.groups * block.places for block in blocks])
    return [part.view(b.groups, b.places, -1) for part, b in zip(parts, blocks, strict=True)]


def products(left_PO: torch.Tensor, right_PI: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Each group's ``left' right`` over its places, (G, O, I)."""
    pairs = zip(split(left_PO, blocks), split(right_PI, blocks), strict=True)
    if left_PO.shape[-1] > right_PI.shape[-1]:  # narrow times wide is the faster order
        return torch.cat([torch.bmm(right.mT, left) for left, right in pairs]).mT
    return torch.cat([torch.bmm(left.mT, right) for left, right in pairs])
