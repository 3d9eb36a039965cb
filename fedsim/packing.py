"""Sequences behind each other in a row, without padding between them; only attention takes them apart.

Every layer but attention treats positions alike, so a row may hold many sequences. In attention they are laid
out one a row, padded on the right, and put back afterwards. Rows end with padding up to the longest. Legend:
B sequences, T positions of the longest, S rows, P positions of the longest row, L positions of all sequences,
H heads, D features of a head.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "fedsim-packed"
_active = threading.local()


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the positions of sequences lie in packed rows.

    ``source_SP`` says which position of (B, T), counted through, fills a place, ``target_BT`` the inverse.
    What pads a row or a sequence repeats its own first position, so that rows have nothing of each other.
    """

    source_SP: torch.Tensor
    filled_SP: torch.Tensor
    target_BT: torch.Tensor
    positions_SP: torch.Tensor

    @classmethod
    def of(cls, lengths_B: torch.Tensor, counts: Sequence[int]) -> Packing:
        """Row s holds the next ``counts[s]`` sequences, one at least, of ``lengths_B`` positions each."""
        device = lengths_B.device
        counts_S = torch.tensor(counts, device=device)
        row_B = torch.repeat_interleave(counts_S)
        ends_B = lengths_B.cumsum(0)
        starts_B = ends_B - lengths_B
        after_S = counts_S.cumsum(0)  # the first sequence of the next row
        row_starts, row_ends = starts_B[after_S - counts_S], ends_B[after_S - 1]
        width, longest = int((row_ends - row_starts).max()), int(lengths_B.max())
        sequence_L = torch.repeat_interleave(lengths_B)
        number_L = torch.arange(len(sequence_L), device=device)
        position_L = number_L - starts_B[sequence_L]
        shift_S = torch.arange(len(counts), device=device) * width - row_starts
        place_L = number_L + shift_S[row_B[sequence_L]]
        origin_L = sequence_L * longest + position_L
        opening_S = (after_S - counts_S) * longest
        source = opening_S.repeat_interleave(width)
        filled = torch.zeros_like(source, dtype=torch.bool)
        positions = torch.zeros_like(source)
        target = place_L[starts_B].repeat_interleave(longest)
        source[place_L], filled[place_L], positions[place_L] = origin_L, True, position_L
        target[origin_L] = place_L
        return cls(
            source_SP=source.view(len(counts), width),
            filled_SP=filled.view(len(counts), width),
            target_BT=target.view(len(lengths_B), longest),
            positions_SP=positions.view(len(counts), width),
        )

    @classmethod
    def of_prefixes(cls, ids_BT: torch.Tensor, lengths_B: torch.Tensor) -> Packing:
        """One row in which each distinct beginning of a sequence has one place, however many share it.

        Questions with several answers are computed once. For inference on sequences of one token at least.
        """
        ids, lengths = ids_BT.cpu().numpy(), lengths_B.cpu().numpy()
        longest = int(lengths.max())
        ids = np.where(np.arange(longest) < lengths[:, None], ids[:, :longest], -1)
        order = np.lexsort(ids.T[::-1])
        ordered = ids[order]
        fresh = np.ones_like(ordered, dtype=bool)
        fresh[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
        fresh &= ordered >= 0
        number = np.where(fresh, np.cumsum(fresh).reshape(fresh.shape) - 1, -1)
        target = np.maximum.accumulate(number, axis=0)  # whoever repeats a beginning lies below its first
        target = np.where(ordered >= 0, target, target[:, :1])
        back = np.empty_like(target)
        back[order] = target
        rows, positions = np.nonzero(fresh)
        source = torch.from_numpy(order[rows] * longest + positions)[None].to(ids_BT.device)
        return cls(
            source_SP=source,
            filled_SP=torch.ones_like(source, dtype=torch.bool),
            target_BT=torch.from_numpy(back).to(ids_BT.device),
            positions_SP=torch.from_numpy(positions)[None].to(ids_BT.device),
        )

    def gather(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Values by position as packed rows (S, P); zero (False) where there is nothing."""
        values_BT = values_BT[:, : self.target_BT.shape[1]]
        return values_BT.reshape(-1)[self.source_SP] * self.filled_SP

    @contextmanager
    def in_attention(self, module: Any) -> Iterator[None]:
        """While this holds, the model's attention takes the sequences of packed rows apart."""
        configs = {id(config): config for config in (module.config, module.config.get_text_config())}
        before = {key: config._attn_implementation for key, config in configs.items()}
        for config in configs.values():
            config._attn_implementation = NAME
        _active.packing, _active.calls = self, 0
        try:
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]
            _active.packing = None


def _attention(
    module: torch.nn.Module,
    query_SHPD: torch.Tensor,
    key_SHPD: torch.Tensor,
    value_SHPD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed rows: (S, P, H, D), as transformers' attention functions give it."""
    packing: Packing = _active.packing
    _active.calls += 1
    joint = (query_SHPD, key_SHPD, value_SHPD)
    q, k, v = (_take(x_SHPD.transpose(1, 2), packing.target_BT).transpose(1, 2) for x_SHPD in joint)
    out_BTHD, _ = sdpa_attention_forward(module, q, k, v, None, **settings)
    return _take(out_BTHD, packing.source_SP), None


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
    Windows and chunks of attention bound the length: here all of a sequence sees all before it.
    """
    config = module.config.get_text_config()
    bounds = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    longest = min((bound for bound in bounds if bound is not None), default=sys.maxsize)
    try:
        same = _says_the_same(module, layers=config.num_hidden_layers, vocabulary=config.vocab_size)
    except Exception:
        return 0
    return longest if same else 0


@torch.no_grad()
def _says_the_same(module: Any, *, layers: int, vocabulary: int) -> bool:
    """Whether short sequences have the same logits packed as padded."""
    device = next(module.parameters()).device
    lengths_B = torch.tensor([2, 3, 1], device=device)
    ids_BT = torch.arange(9, device=device).view(3, 3) % vocabulary
    packing = Packing.of(lengths_B, [2, 1])
    padded = module(input_ids=ids_BT, use_cache=False).logits
    with packing.in_attention(module):
        ids_SP = packing.gather(ids_BT)
        packed = module(input_ids=ids_SP, position_ids=packing.positions_SP, use_cache=False).logits
        seen = _active.calls
    expected = padded.flatten(0, 1)[packing.source_SP][packing.filled_SP]
    off = (packed[packing.filled_SP] - expected).abs().max()
    close = bool(off <= 16 * torch.finfo(expected.dtype).eps * expected.abs().max())
    return close and seen == layers
