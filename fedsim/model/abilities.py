"""What a loaded model can do, found by trying it.

Can its adapter be merged, does it hide padding on the left of a row, does it read tokens that come later?

Nothing is assumed of a family of models or of an option of PEFT; what was tried is put back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from fedsim.rng import torch_stream

SIZE = 0.05
"""Standard deviation of what is added to trained parameters in a trial: far above rounding."""
TOLERANCE = 1e-4
"""Largest difference, as a share of the logits' own range, that passes for rounding in float32."""


@torch.no_grad()
def merging_changes_nothing(
    module: Any,
    trained: Iterable[torch.nn.Parameter],
    merged: Callable[[], AbstractContextManager[torch.nn.Module]],
) -> bool:
    """Whether folding the adapter into the base leaves the model that was trained, under random parameters.

    ``merged`` is the context in which it is folded in. Layers that share weights (tied embeddings, replicated
    layers) change with their neighbours, some variants cannot be merged at all, and low precision rounds
    small deltas away: all count as a change.
    """
    generator = torch_stream(0, "merging-trial")
    parameters = list(trained)
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            drawn = torch.randn(parameter.shape, generator=generator) * SIZE
            parameter.add_(drawn.to(parameter.device, parameter.dtype))
        ids_BT = _some_tokens(module)
        apart = module(input_ids=ids_BT, use_cache=False).logits
        try:
            with merged() as whole:
                folded = whole(input_ids=ids_BT, use_cache=False).logits
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError):
            return False
        return _alike(folded, apart)
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def hides_left_padding(module: Any) -> bool:
    """Whether a row that is padded on the left says what it says alone, given its mask and positions.

    Recurrent layers read their padding; some models take no positions.
    """
    ids_BT = _some_tokens(module)[:1]
    width = ids_BT.shape[1]
    padded = torch.cat([ids_BT[:, :3].flip(-1), ids_BT], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    try:
        alone = module(input_ids=ids_BT, use_cache=False).logits
        behind = module(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
    except (TypeError, ValueError):
        return False
    return _alike(behind[:, -width:], alone, tolerance=max(TOLERANCE, 16 * torch.finfo(alone.dtype).eps))


@torch.no_grad()
def reads_ahead(module: Any) -> bool:
    """Whether logits depend on later tokens: then an answer is read while it is scored.

    False where the trial itself fails: the rehearsal says how.
    """
    ids_BT = _some_tokens(module)[:1]
    other = ids_BT.clone()
    other[:, 8:] = ids_BT[:, :4]
    if torch.equal(other, ids_BT):  # a vocabulary of one token
        return False
    try:
        first, second = (module(input_ids=ids, use_cache=False).logits[:, :8] for ids in (ids_BT, other))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return not _alike(second, first, tolerance=max(TOLERANCE, 16 * torch.finfo(first.dtype).eps))


@torch.no_grad()
def says_the_same_in_training(module: Any, parts: Iterable[torch.nn.Module]) -> bool:
    """Whether logits stay as they are while some parts, and nothing in them, are in training mode."""
    ids_BT = _some_tokens(module)
    kept = module(input_ids=ids_BT, use_cache=False).logits
    awake = list(parts)
    for part in awake:
        part.training = True
    try:
        trained = module(input_ids=ids_BT, use_cache=False).logits
    finally:
        for part in awake:
            part.training = False
    return _alike(trained, kept)


def _some_tokens(module: Any) -> torch.Tensor:
    """Token ids (2, 12), spread over the vocabulary, on the module's device."""
    weight = module.get_input_embeddings().weight
    drawn = torch.randint(weight.shape[0], (2, 12), generator=torch_stream(0, "trial-tokens"))
    return drawn.to(weight.device)


def _alike(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether logits agree, position by position, up to a share of their range over the vocabulary."""
    found, expected = found.double(), expected.double()
    span = (expected.amax(-1) - expected.amin(-1)).clamp(min=1e-12)
    return bool(((found - expected).abs().amax(-1) <= tolerance * span).all())
