"""Sequence packing: sequences concatenated in one row; only attention keeps them separate.

Every layer but attention treats positions alike, so one row may hold many sequences. In attention they are
laid out one a row, padded on the right, and put back afterwards. Sequences come in groups, whose places lie
together; groups of like size form a block, in which all have the same number of places. Legend: B sequences,
T positions of the longest, G groups, P places of the row, L positions of all sequences, S rows, H heads, D
features of a head.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedsim.model.blocks import Block, blocks_of
from fedsim.model.checkpointing import around

NAME = "fedsim-packed"
_active = threading.local()


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Sequences one a row, padded on the right; a group's rows are neighbours. The null object of `Packing`.

    Gradients behind a sequence's end are zero, so nothing needs to be left out there.
    """

    sequences: int
    longest: int
    order: NDArray[np.int64]
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, counts: Sequence[int], longest: int) -> Padded:
        """Group g is the next ``counts[g]`` sequences, one at least; neighbours of one size form a block."""
        runs = [(count, len(list(run))) for count, run in itertools.groupby(counts)]
        blocks = tuple(Block(groups=groups, places=count * longest) for count, groups in runs)
        return cls(sequences=sum(counts), longest=longest, order=np.arange(len(counts)), blocks=blocks)

    def places(self, own_BT: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The places (L,) of the sequences' own positions, in order, and how many places there are."""
        rows, positions = own_BT.nonzero(as_tuple=True)
        return rows * self.longest + positions, self.sequences * self.longest

    def apart(self, x_PF: torch.Tensor) -> torch.Tensor:
        """Features by place as (B, T, F)."""
        return x_PF.view(self.sequences, self.longest, -1)

    def only_own(self, x_BTF: torch.Tensor) -> torch.Tensor:
        """The same."""
        return x_BTF

    def spread(self, values_B: torch.Tensor) -> torch.Tensor:
        """Values by sequence as values by place (P,)."""
        return values_B.repeat_interleave(self.longest)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the positions of sequences lie in a row.

    ``source_P`` says which position of (B, T), counted through, fills a place, ``target_BT`` the inverse;
    what is no padding there is ``filled_P`` and ``own_BT``. What pads a group or a sequence repeats its own
    first position, so that groups have nothing of each other. Groups lie in ``order``, in ``blocks``.
    """

    source_P: torch.Tensor
    filled_P: torch.Tensor
    positions_P: torch.Tensor
    target_BT: torch.Tensor
    own_BT: torch.Tensor
    order: NDArray[np.int64]
    blocks: tuple[Block, ...]

    @classmethod
    def of(
        cls,
        lengths_B: torch.Tensor,
        counts: Sequence[int],
        device: str | torch.device = "cpu",
        *,
        ids_BT: torch.Tensor | None = None,
    ) -> Packing:
        """Group g is the next ``counts[g]`` sequences, one at least, of ``lengths_B`` positions each.

        With their tokens, each distinct beginning of the sequences of a group has one place, however many
        share it. Lengths and tokens on the CPU save waiting for the device.
        """
        lengths = lengths_B.cpu().numpy()
        longest, group_B = int(lengths.max()), np.repeat(np.arange(len(counts)), counts)
        ids = None if ids_BT is None else ids_BT[:, :longest].cpu().numpy()
        sequences, fresh = _beginnings(lengths, group_B, ids)
        number = np.where(fresh, np.cumsum(fresh).reshape(fresh.shape) - 1, -1)
        row_L, position_L = np.nonzero(fresh)
        group_L = group_B[sequences[row_L]]
        sizes_G = np.bincount(group_L, minlength=len(counts))
        order, blocks = blocks_of(sizes_G)
        places_G = np.empty(len(counts), dtype=np.int64)
        places_G[order] = np.repeat([b.places for b in blocks], [b.groups for b in blocks])
        offset_G = np.empty_like(places_G)
        offset_G[order] = np.cumsum(places_G[order]) - places_G[order]
        place_L = (offset_G - (np.cumsum(sizes_G) - sizes_G))[group_L] + np.arange(len(group_L))
        first_G = np.cumsum(counts, dtype=np.int64) - counts
        source = np.repeat(first_G[order] * longest, places_G[order])
        filled = np.zeros(len(source), dtype=bool)
        positions = np.zeros_like(source)
        source[place_L], filled[place_L] = sequences[row_L] * longest + position_L, True
        positions[place_L] = position_L
        return cls(
            source_P=torch.from_numpy(source).to(device),
            filled_P=torch.from_numpy(filled).to(device),
            positions_P=torch.from_numpy(positions).to(device),
            target_BT=torch.from_numpy(_targets(sequences, number, place_L, lengths)).to(device),
            own_BT=_own(lengths_B.to(device), longest),
            order=order,
            blocks=blocks,
        )

    def gather(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Values by place (P,); zero (False) where there is nothing."""
        values_BT = values_BT[:, : self.target_BT.shape[1]]
        return values_BT.reshape(-1)[self.source_P] * self.filled_P

    def spread(self, values_B: torch.Tensor) -> torch.Tensor:
        """Values by sequence as values by place (P,); zero where there is nothing."""
        return values_B[self.source_P // self.target_BT.shape[1]] * self.filled_P

    def places(self, own_BT: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The places (L,) of the sequences' own positions, in order, and how many places there are."""
        return self.target_BT[own_BT], len(self.source_P)

    def apart(self, x_PF: torch.Tensor) -> torch.Tensor:
        """Features by place as (B, T, F); behind a sequence's end, its first position again."""
        return x_PF.index_select(0, self.target_BT.flatten()).view(*self.target_BT.shape, -1)

    def only_own(self, x_BTF: torch.Tensor) -> torch.Tensor:
        """Zero behind a sequence's end."""
        return x_BTF * self.own_BT[..., None]

    def in_attention(self, module: Any) -> AbstractContextManager[None]:
        """While this holds, the model's attention takes the sequences of packed rows apart."""
        return around(partial(self._in_attention, module))

    @contextmanager
    def _in_attention(self, module: Any) -> Iterator[None]:
        configs = {id(config): config for config in (module.config, module.config.get_text_config())}
        before = {key: config._attn_implementation for key, config in configs.items()}
        _active.packing, _active.calls = self, 0
        _active.apart = ALL_ATTENTION_FUNCTIONS[configs[id(module.config)]._attn_implementation]
        for config in configs.values():
            config._attn_implementation = NAME
        try:
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]
            _active.packing = None


def _beginnings(
    lengths: NDArray[np.int64], group_B: NDArray[np.int64], ids: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sequences in an order, by group, and which of their positions begin like none before them in it."""
    within = np.arange(int(lengths.max())) < lengths[:, None]
    if ids is None:
        return np.arange(len(lengths)), within
    ids = np.where(within, ids, -1)
    sequences = np.lexsort([*ids.T[::-1], group_B])
    ordered, groups = ids[sequences], group_B[sequences]
    fresh = np.ones_like(within)
    differs = (ordered[1:] != ordered[:-1]) | (groups[1:] != groups[:-1])[:, None]
    fresh[1:] = np.logical_or.accumulate(differs, axis=1)
    return sequences, fresh & (ordered >= 0)


def _targets(
    sequences: NDArray[np.int64],
    number: NDArray[np.int64],
    place_L: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where each position of each sequence lies, (B, T): behind its end, where it begins.

    ``number`` counts the distinct beginnings in order, -1 for one that was there before: whoever repeats it
    stands below its first.
    """
    ordered = place_L[np.maximum.accumulate(number, axis=0)]
    within = np.arange(number.shape[1]) < lengths[sequences][:, None]
    target = np.empty_like(ordered)
    target[sequences] = np.where(within, ordered, ordered[:, :1])
    return target


def _own(lengths_B: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]


def _attention(
    module: torch.nn.Module,
    query_SHPD: torch.Tensor,
    key_SHPD: torch.Tensor,
    value_SHPD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed rows: (S, P, H, D), as transformers' attention functions give it.

    Sequences are computed by the model's own function, which is told nothing of where they lay.
    """
    packing: Packing = _active.packing
    _active.calls += 1
    joint = (query_SHPD, key_SHPD, value_SHPD)
    q, k, v = (_take(x_SHPD.transpose(1, 2), packing.target_BT).transpose(1, 2) for x_SHPD in joint)
    settings.pop("position_ids", None)
    out_BTHD, _ = _active.apart(module, q, k, v, None, **settings)
    return _take(out_BTHD, packing.source_P[None]), None


def _take(x_SPHD: torch.Tensor, places_BT: torch.Tensor) -> torch.Tensor:
    """Positions counted through the first two axes, (B, T, H, D)."""
    flat = x_SPHD.reshape(-1, *x_SPHD.shape[2:])
    return flat.index_select(0, places_BT.reshape(-1)).view(*places_BT.shape, *flat.shape[1:])


def _mask(*arguments: Any, **settings: Any) -> None:
    """No mask: sequences are apart, and causality hides the padding on their right."""
    return


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


def longest_packable(module: Any) -> int:
    """Positions of the longest sequence that a model may pack, 0 if none; found by trying three short ones.

    Every attention layer must have taken the rows apart, and the outcome must be that of padded sequences.
    Windows and chunks of attention bound the length: here all of a sequence sees all before it. Eager
    attention is causal by its mask alone, and packed rows have none.
    """
    config = module.config.get_text_config()
    if module.config._attn_implementation == "eager":
        return 0
    bounds = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    longest = min((bound for bound in bounds if bound is not None), default=sys.maxsize)
    try:
        same = _says_the_same(module, layers=config.num_hidden_layers, vocabulary=config.vocab_size)
    except Exception:
        return 0
    return longest if same else 0


@torch.no_grad()
def _says_the_same(module: Any, *, layers: int, vocabulary: int) -> bool:
    """Whether short sequences have the same logits packed as padded, in half of the digits at least.

    Rounding grows with the layers, and two threads add up in another order than one.
    """
    device = str(next(module.parameters()).device)
    lengths_B = torch.tensor([2, 3, 1])
    ids_BT = torch.arange(9, device=device).view(3, 3) % vocabulary
    packing = Packing.of(lengths_B, [2, 1], device)
    padded = module(input_ids=ids_BT, use_cache=False).logits
    with packing.in_attention(module):
        ids_P = packing.gather(ids_BT)
        position_ids = packing.positions_P[None]
        packed = module(input_ids=ids_P[None], position_ids=position_ids, use_cache=False).logits[0]
        seen = _active.calls
    expected = padded.flatten(0, 1)[packing.source_P][packing.filled_P]
    off = (packed[packing.filled_P] - expected).abs().max()
    close = bool(off <= torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max())
    return close and seen == layers
