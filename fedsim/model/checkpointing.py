"""Activation checkpointing: what a block computes inside is computed again in the backward pass, not kept.

Chen et al., "Training deep nets with sublinear memory cost" (2016), arXiv:1604.06174, as in transformers and
torch. transformers checkpoints blocks in training mode, while a frozen base is in evaluation mode, without
dropout; so blocks, and nothing in them, are put in training mode. A block is computed again when what stood
around its pass (stacked factors, packed rows, dropout masks) has been left: it is entered again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from fedsim.config import ConfigError
from fedsim.model.abilities import says_the_same_in_training

T = TypeVar("T")
_local = threading.local()


@contextmanager
def around(enter: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Enter a context, and again whenever a block whose pass began in it is computed again."""
    before = _entered_here()
    _local.entered = (*before, enter)
    try:
        with enter() as given:
            yield given
    finally:
        _local.entered = before


def _entered_here() -> tuple[Callable[[], AbstractContextManager[Any]], ...]:
    return getattr(_local, "entered", ())


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For a block's pass nothing more, and for its repetition what stands around the pass now."""
    return nullcontext(), _again(_entered_here())


@contextmanager
def _again(entered: tuple[Callable[[], AbstractContextManager[Any]], ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for enter in entered:
            stack.enter_context(enter())
        yield


def blocks_that_repeat(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that are computed again in the backward pass; none without checkpointing."""
    blocks = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    return [block for block in blocks if block.gradient_checkpointing]


def enable_checkpointing(module: Any, *, frozen: bool) -> None:
    """Have a causal language model checkpoint its blocks, whether it is wrapped by PEFT or not.

    Raises:
        ConfigError: it has no such blocks; or, if ``frozen``, they would drop some of what they compute.
    """
    base = _base_of(module)
    try:
        switch_on(module)
    except ValueError as error:
        raise ConfigError(
            f"this base cannot checkpoint its blocks ({error}); leave it out", "checkpointing"
        ) from error
    blocks = blocks_that_repeat(base)
    if not blocks:
        raise ConfigError("this base has no blocks that can be computed again; leave it out", "checkpointing")
    if frozen and not says_the_same_in_training(base, blocks):
        raise ConfigError(
            "the blocks of this base drop some of what they compute once they train, as checkpointing needs "
            "them to; leave it out, or set the dropout in the base's config.json to 0",
            "checkpointing",
        )


def switch_on(module: Any) -> None:
    """The same without a trial; ValueError from transformers where it knows of no blocks."""
    base = _base_of(module)
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": _contexts})


def _base_of(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module
