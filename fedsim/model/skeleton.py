"""A model of a shape alone: all its layers on torch's meta device, where weights take no memory.

What it takes on a real device is known before anything is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from fedsim.model.adapter import AdapterModel
from fedsim.model.checkpointing import switch_on
from fedsim.model.config import ModelConfig
from fedsim.model.loading import adapted, choose_trained, resolve_base
from fedsim.model.prompts import TextFormat


def skeleton_of(shape: Any, config: ModelConfig) -> AdapterModel:
    """The model that ``config`` would make of a base with transformers' configuration ``shape``.

    Its weights are those before quantising. ``auto`` is bfloat16, which a GPU takes.
    """
    kind = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    eager = {"attn_implementation": "eager"} if config.attention == "eager" else {}
    make: Any = transformers.AutoModelForCausalLM.from_config
    with torch.device("meta"):
        base = make(shape, dtype=kind, **eager)
    module = adapted(base, config.lora)
    names = choose_trained(module, config.lora)
    if config.checkpointing:
        switch_on(module)
    return AdapterModel(
        module=module,
        tokenizer=None,
        names=names,
        device="meta",
        base_name=config.base,
        start={},
        fmt=TextFormat(max_tokens=config.max_tokens),
    )


def shape_of(config: ModelConfig) -> Any | None:
    """The shape of the base that ``config`` names, from its config.json; None if there is none to be had."""
    try:
        return transformers.AutoConfig.from_pretrained(
            resolve_base(config.base), revision=config.revision, trust_remote_code=False
        )
    except Exception:  # loading it will say what is wrong
        return None
