"""Shapes of well-known bases, to plan for one that is not here: numbers of its published config.json."""

from __future__ import annotations

from typing import Any

import transformers

from fedsim.config import ConfigError
from fedsim.model.config import ModelConfig
from fedsim.model.skeleton import shape_of

_LLAMA = {
    "vocab_size": 128_256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-3.2-1B-Instruct": (
        "llama",
        {**_LLAMA, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    ),
    "meta-llama/Llama-3.2-3B-Instruct": (
        "llama",
        {**_LLAMA, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
    ),
    "mistralai/Mistral-7B-v0.3": (
        "mistral",
        {
            "vocab_size": 32_768,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
}


def known_shapes() -> tuple[str, ...]:
    """Names of bases whose shape is known."""
    return tuple(_SHAPES)


def known_shape(name: str) -> Any:
    """The shape of a well-known base, as transformers' configuration of it."""
    family, numbers = _SHAPES[name]
    return transformers.AutoConfig.for_model(family, **numbers)


def shape_for(config: ModelConfig) -> Any:
    """The shape of the base that a scenario names: one that is known, or that of its config.json.

    Raises:
        ConfigError: neither is to be had.
    """
    if config.base in _SHAPES:
        return known_shape(config.base)
    shape = shape_of(config)
    if shape is None:
        raise ConfigError(
            f"no shape is known of base={config.base!r}, and its config.json cannot be read; known are "
            f"{', '.join(_SHAPES)}",
            "base",
        )
    return shape
