"""A base whose linear layers hold 4 or 8 bits a weight, by bitsandbytes; head and embeddings keep theirs.

4 bits are NF4, its block scales quantised once more (QLoRA: Dettmers et al., 2023, arXiv:2305.14314); 8 bits
are LLM.int8 (Dettmers et al., 2022, arXiv:2208.07339). Both compute in ``model.dtype`` and need a CUDA GPU.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
import transformers

from fedsim.config import ConfigError

Quantize = Literal["4bit", "8bit"]
BLOCK, BLOCKS_A_SCALE = 64, 256
"""Weights that share a scale of one byte, and scales of one byte that share one of four: NF4's defaults."""
SCALES_4BIT = 1 / BLOCK + 4 / (BLOCK * BLOCKS_A_SCALE)
"""Bytes of scales a weight."""


def check_quantising(quantize: Quantize, device: str) -> None:
    """Refuse quantised weights where they cannot be had.

    Raises:
        ConfigError: the device is no CUDA GPU, or bitsandbytes is not installed.
    """
    if not device.startswith("cuda"):
        raise ConfigError(
            f"{quantize} weights need a CUDA GPU, and the device is {device}; leave it null, with "
            "model.dtype: bfloat16 for weights of two bytes",
            "quantize",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{quantize} weights need bitsandbytes, which is not installed here; install it with "
            "pip install -c constraints.txt -e '.[gpu]', or leave it null",
            "quantize",
        )


def loading_options(quantize: Quantize | None, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What transformers is asked for on top, to load a base quantised; nothing for one that is not."""
    if quantize is None:
        return {}
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantize == "4bit":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    chosen = transformers.BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]
    return {"quantization_config": chosen, "device_map": {"": device}}


def is_quantised(layer: Any) -> bool:
    """Whether a layer's weight is stored in codes, to which nothing can be added."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.is_floating_point()


def base_bytes(module: Any, quantize: Quantize | None = None) -> int:
    """What a model's weights take, in bytes; with ``quantize``, what they will take once quantised."""
    head = module.get_output_embeddings()
    linear = (
        {}
        if quantize is None
        else {id(m.weight): m for m in module.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    )
    return round(sum(_bytes(p, quantize if id(p) in linear else None) for p in module.parameters()))


def _bytes(weight: torch.Tensor, quantize: Quantize | None) -> float:
    count, rows = weight.numel(), weight.shape[0]
    if quantize == "4bit":
        return count * (0.5 + SCALES_4BIT)
    if quantize == "8bit":
        return count + 4 * rows
    scales = {torch.uint8: 2 * count * SCALES_4BIT, torch.int8: 4 * rows}
    return count * weight.element_size() + scales.get(weight.dtype, 0)
