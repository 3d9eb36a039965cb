"""From a base on disk or on the hub to the model that clients share; whatever cannot be used is said."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from fedsim.config import ConfigError
from fedsim.data.records import Record
from fedsim.model.abilities import reads_ahead
from fedsim.model.adapter import AdapterModel, isolated_torch_rng
from fedsim.model.arithmetic import resolved
from fedsim.model.assets import ASSETS
from fedsim.model.checkpointing import enable_checkpointing
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.decompositions import lesson, start_of
from fedsim.model.lora_options import check_matches, check_patterns, check_targets, patterns_of
from fedsim.model.prompts import TextFormat, format_of
from fedsim.model.quantising import check_quantising, loading_options
from fedsim.model.starting import Start
from fedsim.rng import torch_stream


class ModelError(ConfigError):
    """The base or its adapter cannot be used; the message says what, where and what to try.

    ``key`` is the key at fault, below ``model``.
    """


def resolve_base(base: str) -> str:
    """The path or hub name behind ``base``: names of embedded models come first."""
    embedded = ASSETS / base
    return str(embedded) if embedded.is_dir() else base


def load_model(config: ModelConfig, *, device: str = "cpu", public: Sequence[Record] = ()) -> AdapterModel:
    """Load the base named by ``config`` and put an adapter on it; ``AdapterModel.fresh`` draws its weights.

    ``public`` are records that the base knows, for adapters that start from what it makes of them.

    Raises:
        ModelError: the base cannot be loaded, or no layer fits ``target_modules``.
    """
    tokenizer, base = _loaded(config, device)
    _check_tokenizer(tokenizer, base, config)
    fmt = format_of(tokenizer, config)
    module = adapted(base, config.lora)
    init = Start() if config.lora is None else _started(module, config.lora, tokenizer, fmt, public)
    names = choose_trained(module, config.lora)
    if config.quantize is None:  # else it was loaded there, factors included
        module.to(device)
    if config.checkpointing:
        enable_checkpointing(module, frozen=config.lora is not None)
    if reads_ahead(module):
        raise ModelError(
            f"base={config.base!r} is no causal language model: its logits depend on later tokens, "
            "so it would read each answer while it is scored",
            "base",
        )
    parameters = dict(module.named_parameters())
    return AdapterModel(
        module=module,
        tokenizer=tokenizer,
        names=names,
        device=device,
        base_name=config.base,
        start={name: parameters[name].detach().float().cpu().numpy().copy() for name in names},
        fmt=fmt,
        init=init,
    )


def _loaded(config: ModelConfig, device: str) -> tuple[Any, Any]:
    """Tokenizer and base as transformers gives them."""
    source = resolve_base(config.base)
    kind = getattr(torch, resolved(config.dtype, device))
    if config.quantize is not None:
        check_quantising(config.quantize, device)
    more = loading_options(config.quantize, kind, device)
    if config.attention != "auto":
        _check_attention(config.attention, device)
        more["attn_implementation"] = config.attention
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=False
        )
        base = transformers.AutoModelForCausalLM.from_pretrained(
            source, revision=config.revision, dtype=kind, trust_remote_code=False, **more
        )
    except Exception as error:
        embedded = ", ".join(sorted(path.name for path in ASSETS.iterdir() if path.is_dir()))
        made = "make smollm2 writes it; or " if Path(config.base).name == "smollm2-135m" else ""
        raise ModelError(
            f"base={config.base!r} {_why_not_loaded(source, error)}; {made}give an embedded "
            f"model ({embedded}), a Hugging Face model directory, or the name of a model on the hub that is "
            "reachable from here",
            "base",
        ) from error
    return tokenizer, base


def _started(
    module: torch.nn.Module, lora: LoraConfig, tokenizer: Any, fmt: TextFormat, public: Sequence[Record]
) -> Start:
    """What the factors start with, in place."""
    try:
        return start_of(module, lora, lesson(lora, tokenizer, fmt, public))
    except ConfigError as error:
        raise ModelError(str(error), "lora", *error.key) from None
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(
            f"init={lora.init} fails on this base ({first_line(error)}); use another start", "lora", "init"
        ) from error


def _check_attention(attention: str, device: str) -> None:
    """Refuse flash attention where it cannot be had."""
    if attention != "flash_attention_2":
        return
    if not device.startswith("cuda"):
        raise ModelError(f"{attention} needs a CUDA GPU, and the device is {device}; use auto", "attention")
    if importlib.util.find_spec("flash_attn") is None:
        raise ModelError(
            f"{attention} needs the package flash-attn, which is not installed here; use auto: sdpa has such "
            "a kernel of its own",
            "attention",
        )


def _why_not_loaded(source: str, error: Exception) -> str:
    """What is wrong with a base: that there is no such folder, with the nearest, or what its loader says."""
    folder = Path(source)
    said = f"cannot be loaded as a causal language model ({type(error).__name__}: {first_line(error)})"
    if folder.exists():
        return said
    beside = (
        [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    )
    near = difflib.get_close_matches(folder.name, beside, n=1)
    absent = "is no folder here" + (f" (nearest: {folder.parent / near[0]})" if near else "")
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    return absent if is_path else f"{absent}, and as a name on the hub it {said}"


def _check_tokenizer(tokenizer: Any, base: Any, config: ModelConfig) -> None:
    """Refuse a tokenizer that cannot place answers or end them, or whose end marker the base cannot read."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"base={config.base!r} has no fast tokenizer; character offsets are needed", "base")
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            f"base={config.base!r} has no end-of-sequence marker, so no answer would end; "
            "name one as eos_token in its tokenizer_config.json",
            "base",
        )
    rows = int(base.get_input_embeddings().weight.shape[0])
    if end >= rows:
        raise ModelError(
            f"base={config.base!r} has the end-of-sequence marker {tokenizer.eos_token!r} at {end}, outside "
            f"its embedding of {rows} tokens; use the tokenizer that belongs to the base",
            "base",
        )


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def adapted(base: Any, lora: LoraConfig | None) -> torch.nn.Module:
    """A frozen base with adapters, in evaluation mode; without LoRA the base itself.

    Raises:
        ModelError: no layer fits, or PEFT refuses an option.
    """
    base.requires_grad_(False)
    with isolated_torch_rng(torch_stream(0, "adapter-layout")):
        module: torch.nn.Module = base if lora is None else _with_lora(base, lora)
    return module.eval()


def _with_lora(base: Any, lora: LoraConfig) -> torch.nn.Module:
    targets = lora.target_modules
    modules = [name for name, _ in base.named_modules()]
    kinds = (torch.nn.Linear, Conv1D)
    linears = sorted({name.rsplit(".", 1)[-1] for name, m in base.named_modules() if isinstance(m, kinds)})
    try:
        check_patterns(patterns_of(targets, lora.peft), modules)
        check_targets(targets, modules, linears)
        parameters = [name for name, _ in base.named_parameters()]
        check_matches(lora.peft, modules, parameters, base.get_input_embeddings().weight.shape[0])
    except ConfigError as error:
        raise ModelError(str(error), "lora", *error.key) from None
    try:
        settings = peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by r: any number
            lora_dropout=lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
            **lora.peft,
        )
        wrapped: torch.nn.Module = peft.get_peft_model(base, settings, autocast_adapter_dtype=True)
    except Exception as error:  # PEFT refuses its options with exceptions of every kind
        raise ModelError(
            f"does not fit the base ({first_line(error)}); its linear layers are {', '.join(linears)}",
            "lora",
        ) from error
    return wrapped


def choose_trained(module: torch.nn.Module, lora: LoraConfig | None) -> tuple[str, ...]:
    """Mark the trained parameters and give their names, sorted."""
    for name, parameter in module.named_parameters():
        if lora is None:
            trained = True
        else:
            trained = parameter.requires_grad and not (lora.train == "B" and "lora_A" in name)
        parameter.requires_grad_(trained)
        if trained and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    names = tuple(sorted(name for name, p in module.named_parameters() if p.requires_grad))
    if not names:
        raise ModelError("nothing would be trained; adapt a layer, or set lora: null to train all", "lora")
    return names
