"""One frozen base, one set of trained parameters: the model that every virtual client shares.

The trained parameters (LoRA factors, or all parameters when ``lora`` is null) are the *adapter*: the
only thing that travels. They cross the boundary as fp32 NumPy arrays under their PEFT names. The base
is loaded once and never changes. LoRA: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from fedsim.config import ConfigError
from fedsim.hub import ASSETS
from fedsim.lora_options import check_matches, check_patterns, patterns_of
from fedsim.model_trials import hides_left_padding, merging_changes_nothing, reads_ahead
from fedsim.packing import longest_packable
from fedsim.rng import torch_stream
from fedsim.scenario import LoraConfig, ModelConfig

Arrays = dict[str, NDArray[np.float32]]


class ModelError(ConfigError):
    """The base or its adapter cannot be used; the message says what, where and what to try.

    ``key`` is the key at fault, below ``model``.
    """


@contextmanager
def isolated_torch_rng(generator: torch.Generator) -> Iterator[None]:
    """Run code that insists on torch's global generator from a keyed one; the global one is restored."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator.initial_seed())
        yield


def _owns_trained(module: torch.nn.Module) -> bool:
    return any(own.requires_grad for own in module.parameters(recurse=False))


def resolve_base(base: str) -> str:
    """The path or hub name behind ``base``: names of embedded models come first."""
    embedded = ASSETS / base
    return str(embedded) if embedded.is_dir() else base


@dataclass(frozen=True, kw_only=True)
class AdapterModel:
    """A causal LM whose trainable parameters are set from arrays and read back.

    ``names`` fixes the parameter order that vectors use. ``tokenizer`` belongs to the base. ``start`` holds
    the trained parameters as they were loaded; what PEFT draws at random in them is drawn anew for each life.
    """

    module: torch.nn.Module
    tokenizer: Any
    names: tuple[str, ...]
    device: str
    base_name: str
    start: Arrays

    def fresh(self, seed: int) -> Arrays:
        """Put fresh adapter weights in place, keyed by ``seed``, and give the trained ones.

        Untrained factors (A under ``lora.train: B``) are part of it, so a life begins with this, also when
        it goes on from a checkpoint. Weights are drawn on the CPU, so that they do not depend on the device.
        """
        self.load(self.start)
        with isolated_torch_rng(torch_stream(seed, "adapter-init")):
            for layer in self._lora_layers():
                factors = [getattr(layer, name) for name in layer.adapter_layer_names]
                for factor in factors:
                    factor.to("cpu")
                layer.reset_lora_parameters("default", init_lora_weights=True)
                for factor in factors:
                    factor.to(self.device)
        return self.arrays()

    def replicas(self, count: int) -> list[AdapterModel]:
        """This model and others for as many threads: what is frozen is shared, what is trained is their own.

        Made once, and kept.
        """
        while len(self._replicas) < count - 1:
            frozen = [p for p in self.module.parameters() if not p.requires_grad]
            shared = {id(tensor): tensor for tensor in (*frozen, *self.module.buffers())}
            one = replace(self, module=copy.deepcopy(self.module, memo=shared))
            vars(one)["packs_up_to"] = self.packs_up_to  # trying it again would touch what is shared
            self._replicas.append(one)
        return [self, *self._replicas[: count - 1]]

    @cached_property
    def _replicas(self) -> list[AdapterModel]:
        return []

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is frozen and of what training starts from."""
        found = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                found.update(name.encode())
                found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        for name, array in self.start.items():
            found.update(name.encode() + array.tobytes())
        return found.hexdigest()

    def adopt_untrained(self, other: AdapterModel) -> None:
        """Take the adapter parameters that nobody trains (A under ``lora.train: B``) from a replica."""
        for own, theirs in zip(self._lora_layers(), other._lora_layers(), strict=True):
            for name in own.adapter_layer_names:
                pairs = zip(getattr(own, name).parameters(), getattr(theirs, name).parameters(), strict=True)
                for mine, source in pairs:
                    if not mine.requires_grad:
                        mine.data.copy_(source.data)

    def _lora_layers(self) -> list[Any]:
        return [layer for layer in self.module.modules() if isinstance(layer, LoraLayer)]

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        every = dict(self.module.named_parameters())
        return {name: every[name] for name in self.names}

    def arrays(self) -> Arrays:
        """The adapter as fp32 copies, in the order of ``names``."""
        return {
            name: parameter.detach().float().cpu().numpy().copy()
            for name, parameter in self.parameters().items()
        }

    @torch.no_grad()
    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the adapter; ValueError when names or shapes differ."""
        parameters = self.parameters()
        if set(arrays) != set(parameters):
            odd = sorted(set(arrays) ^ set(parameters))[:3]
            raise ValueError(f"adapter arrays must be exactly the trained parameters; differing: {odd}")
        for name, parameter in parameters.items():
            value = np.asarray(arrays[name])
            if value.shape != tuple(parameter.shape):
                raise ValueError(f"array {name} has shape {value.shape}, expected {tuple(parameter.shape)}")
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    @cached_property
    def packs_up_to(self) -> int:
        """Tokens of the longest sequence that may be packed (``fedsim.packing``); 0 if none.

        The base alone decides, whatever adapter is in place.
        """
        if not isinstance(self.module, peft.PeftModel):
            return longest_packable(self.module)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        with self.module.disable_adapter():
            longest = longest_packable(self.module)
        self.module.requires_grad_(False)  # PEFT now takes every factor for trained
        for parameter in trained:
            parameter.requires_grad_(True)
        return longest

    @contextmanager
    def training(self) -> Iterator[None]:
        """What is trained in training mode, dropout on; a frozen base in evaluation mode, its dropout off.

        Afterwards everything is in evaluation mode.
        """
        for module in self._trained_modules:
            module.training = True
        try:
            yield
        finally:
            for module in self._trained_modules:
                module.training = False

    @cached_property
    def _trained_modules(self) -> list[torch.nn.Module]:
        """Modules that own trained parameters, and what an adapter does to its input; all without LoRA."""
        modules = dict.fromkeys(m for m in self.module.modules() if _owns_trained(m))
        for layer in self._lora_layers():
            modules |= dict.fromkeys([layer, *layer.lora_dropout.modules()])
        return list(modules if self._lora_layers() else self.module.modules())

    @contextmanager
    def measuring(self) -> Iterator[torch.nn.Module]:
        """The module as it was trained, for inference; the adapter folded in where that changes nothing."""
        if not self.merges:
            yield self.module
            return
        with self._merged() as module:
            yield module

    @cached_property
    def merges(self) -> bool:
        """Whether the adapter can be folded into the base for inference without changing the model.

        Tried once, for exactly this base and these options. False without LoRA: there is nothing to fold.
        """
        if not self._lora_layers():
            return False
        parts = [
            parameter
            for layer in self._lora_layers()
            for name in layer.adapter_layer_names
            for parameter in getattr(layer, name).parameters()
        ]
        trained = dict.fromkeys([*self.parameters().values(), *parts])
        return merging_changes_nothing(self.module, trained, self._merged)

    @contextmanager
    def _merged(self) -> Iterator[torch.nn.Module]:
        """The module with the adapter's deltas folded into the base weights.

        On leaving, the base's own tensors are put back, so no rounding stays behind. Meanwhile the
        adapted weights take memory twice.
        """
        layers = self._lora_layers()
        originals: dict[torch.nn.Parameter, torch.Tensor] = {}
        try:
            for layer in layers:
                for parameter in layer.get_base_layer().parameters(recurse=False):
                    originals.setdefault(parameter, parameter.data)
                    parameter.data = parameter.data.clone()
                layer.merge(adapter_names=["default"])
            yield self.module
        finally:
            for parameter, original in originals.items():
                parameter.data = original
            for layer in layers:
                layer.merged_adapters.clear()

    @cached_property
    def hides_left_padding(self) -> bool:
        """Whether prompts of several lengths may be continued together, padded on the left."""
        return hides_left_padding(self.module)

    @property
    def positions(self) -> int | None:
        """Tokens of the longest sequence that the base was made for; None if it names no bound."""
        module: Any = self.module
        config = module.config.get_text_config()
        bounds = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
        return next((int(bound) for bound in bounds if isinstance(bound, int) and bound > 0), None)

    @property
    def vocabulary(self) -> int:
        """Rows of the base's embedding: token ids are below it."""
        module: Any = self.module
        return int(module.get_input_embeddings().weight.shape[0])

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's end marker and those that the base generates until."""
        named = getattr(getattr(self.module, "generation_config", None), "eos_token_id", None)
        more = named if isinstance(named, (list, tuple)) else [named]
        return frozenset(int(token) for token in (self.tokenizer.eos_token_id, *more) if token is not None)

    @property
    def pad_id(self) -> int:
        """What fills rows; causality and masks hide it. The end marker, where a pad token is not embedded."""
        pad = self.tokenizer.pad_token_id
        usable = pad is not None and pad < self.vocabulary
        return int(pad if usable else self.tokenizer.eos_token_id)


def load_model(config: ModelConfig, *, device: str = "cpu") -> AdapterModel:
    """Load the base named by ``config`` and put an adapter on it; ``AdapterModel.fresh`` draws its weights.

    Raises:
        ModelError: the base cannot be loaded, or no layer fits ``target_modules``.
    """
    source = resolve_base(config.base)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=False
        )
        base = transformers.AutoModelForCausalLM.from_pretrained(
            source, revision=config.revision, dtype=getattr(torch, config.dtype), trust_remote_code=False
        )
    except Exception as error:
        embedded = ", ".join(sorted(path.name for path in ASSETS.iterdir() if path.is_dir()))
        raise ModelError(
            f"base={config.base!r} {_why_not_loaded(source, error)}; give an embedded model ({embedded}), "
            "a Hugging Face model directory, or the name of a model on the hub that is reachable from here",
            "base",
        ) from error
    _check_tokenizer(tokenizer, base, config)
    base.requires_grad_(False)
    with isolated_torch_rng(torch_stream(0, "adapter-layout")):
        module = base if config.lora is None else _with_lora(base, config.lora)
    names = _choose_trained(module, config.lora)
    module.to(device)
    module.eval()
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
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _with_lora(base: Any, lora: LoraConfig) -> torch.nn.Module:
    targets = lora.target_modules
    modules = [name for name, _ in base.named_modules()]
    kinds = (torch.nn.Linear, Conv1D)
    linears = sorted({name.rsplit(".", 1)[-1] for name, m in base.named_modules() if isinstance(m, kinds)})
    try:
        check_patterns(patterns_of(targets, lora.peft), modules)
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
            f"lora={lora.model_dump()!r} does not fit the base ({first_line(error)}); "
            f"its linear layers are {', '.join(linears)}, or use target_modules: all-linear",
            "lora",
        ) from error
    return wrapped


def _choose_trained(module: torch.nn.Module, lora: LoraConfig | None) -> tuple[str, ...]:
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


def to_vector(arrays: Mapping[str, NDArray[np.float32]], names: Sequence[str]) -> NDArray[np.float32]:
    """Concatenate arrays in the order of ``names`` into one fp32 vector, shape (d,)."""
    return np.concatenate([np.asarray(arrays[name], dtype=np.float32).ravel() for name in names])


def from_vector(vector: NDArray[np.float32], like: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """The inverse of ``to_vector`` with names (sorted) and shapes taken from ``like``."""
    out: Arrays = {}
    offset = 0
    for name in sorted(like):
        size = like[name].size
        out[name] = vector[offset : offset + size].reshape(like[name].shape).astype(np.float32)
        offset += size
    if offset != vector.size:
        raise ValueError(f"vector has {vector.size} entries, the adapter has {offset}")
    return out
