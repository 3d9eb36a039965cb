"""What is trained, on disk: a directory of PEFT or of transformers that others can load.

Everything is fp32 and comes back bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.numpy import load_file, save_file

from fedsim.model.adapter import AdapterModel
from fedsim.model.loading import ModelError, first_line, resolve_base
from fedsim.model.starting import (
    for_the_base_as_it_was,
    for_the_changed_base,
    settings_for_the_base_as_it_was,
)
from fedsim.model.vectors import Arrays
from fedsim.storage.whole import whole_directory

FULL = "model.safetensors"
"""Where all parameters of a model lie, as transformers names the file."""


def save_adapter(model: AdapterModel, arrays: Arrays, directory: Path) -> None:
    """Write the adapter as a PEFT directory, or as a model directory when all parameters are trained.

    ``AutoPeftModelForCausalLM``, or ``AutoModelForCausalLM``, loads it from anywhere, onto the base as it is
    published (``fedsim.model.starting``). Edge cases: with ``lora.train: B`` the untrained A factors are
    written too, so that PEFT can load it.
    """
    with whole_directory(directory) as temporary:
        if isinstance(model.module, peft.PeftModel):
            model.load(arrays)
            state = peft.get_peft_model_state_dict(model.module, save_embedding_layers=False)
            tensors = {name: value.detach().float().cpu().numpy().copy() for name, value in state.items()}
            settings = model.module.peft_config["default"].to_dict()
            if model.init.off_base:
                tensors = for_the_base_as_it_was(tensors, model.init.factors or {})
                settings = settings_for_the_base_as_it_was(settings)
            settings["base_model_name_or_path"] = _found_from_anywhere(model.base_name)
            text = json.dumps(settings, indent=2, sort_keys=True, default=_plain)
            (temporary / "adapter_config.json").write_text(text + "\n")
            save_file(tensors, temporary / "adapter_model.safetensors")
        else:
            save_file(arrays, temporary / FULL, metadata={"format": "pt"})
            whole: Any = model.module
            whole.config.to_json_file(temporary / "config.json")


def load_adapter(model: AdapterModel, directory: Path) -> Arrays:
    """Read what ``save_adapter`` wrote; the arrays come back bit for bit. They pass through the model.

    Raises:
        ModelError: the directory holds the adapter of another layout.
    """
    try:
        if not isinstance(model.module, peft.PeftModel):
            model.load(load_file(directory / FULL))
            return model.arrays()
        arrays = load_file(directory / "adapter_model.safetensors")
        if model.init.off_base:
            arrays = for_the_changed_base(arrays, model.init.factors or {})
        state = {name: torch.from_numpy(value) for name, value in arrays.items()}
        found: Any = peft.set_peft_model_state_dict(model.module, state)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"{directory} was saved from another adapter layout ({first_line(error)})"
        ) from error
    odd = [*sorted(set(model.names) & set(found.missing_keys)), *found.unexpected_keys]
    if odd:
        raise ModelError(f"{directory} was saved from another adapter layout; differing: {odd[:3]}")
    return model.arrays()


def _plain(value: Any) -> Any:
    """JSON for what PEFT's configuration holds beyond plain values: sets and enumerations."""
    return sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", str(value))


def _found_from_anywhere(base: str) -> str:
    """A base as whoever loads a checkpoint finds it, in whatever folder: an absolute path, or a hub name."""
    source = Path(resolve_base(base))
    return str(source.resolve()) if source.is_dir() else base
