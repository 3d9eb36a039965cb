"""One frozen base, one set of trained parameters: the model that every virtual client shares.

The trained parameters (LoRA factors, or all parameters when ``lora`` is null) are the *adapter*: the
only thing that travels. They cross the boundary as fp32 NumPy arrays under their PEFT names. The base
is loaded once and never changes after that. LoRA: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer

from fedsim.model.abilities import hides_left_padding, merging_changes_nothing
from fedsim.model.checkpointing import blocks_that_repeat
from fedsim.model.packing import longest_packable
from fedsim.model.prompts import TextFormat
from fedsim.model.quantising import is_quantised
from fedsim.model.starting import ADAPTER, Start, draw
from fedsim.model.vectors import Arrays
from fedsim.rng import torch_stream


@contextmanager
def isolated_torch_rng(generator: torch.Generator) -> Iterator[None]:
    """Run code that insists on torch's global generator from a keyed one; the global one is restored."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator.initial_seed())
        yield


def _owns_trained(module: torch.nn.Module) -> bool:
    return any(own.requires_grad for own in module.parameters(recurse=False))


@torch.no_grad()
def _put(parameters: Mapping[str, torch.nn.Parameter], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Set the parameters that ``arrays`` name; ValueError when a shape differs."""
    for name, array in arrays.items():
        value, parameter = np.asarray(array), parameters[name]
        if value.shape != tuple(parameter.shape):
            raise ValueError(f"array {name} has shape {value.shape}, expected {tuple(parameter.shape)}")
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


@dataclass(frozen=True, kw_only=True)
class AdapterModel:
    """A causal LM whose trainable parameters are set from arrays and read back.

    ``names`` fixes the parameter order that vectors use. ``tokenizer`` belongs to the base, and ``fmt`` says
    how it is asked. ``start`` holds
    the trained parameters as they were loaded; ``init`` says which factors are drawn anew for each life.
    """

    module: torch.nn.Module
    tokenizer: Any
    names: tuple[str, ...]
    device: str
    base_name: str
    start: Arrays
    fmt: TextFormat = field(default_factory=TextFormat)
    init: Start = field(default_factory=Start)

    def fresh(self, seed: int) -> Arrays:
        """Put fresh adapter weights in place, keyed by ``seed``, and give the trained ones.

        Untrained factors (A under ``lora.train: B``) are part of it, so a life begins with this, also when
        it goes on from a checkpoint. Weights are drawn on the CPU, so that they do not depend on the device.
        A start that was taken from the base is put in place as it is.
        """
        self.load(self.start)
        if self.init.factors is not None:
            _put(dict(self.module.named_parameters()), self.init.factors)
            return self.arrays()
        with isolated_torch_rng(torch_stream(seed, "adapter-init")):
            for layer in self._lora_layers():
                factors = [getattr(layer, name) for name in layer.adapter_layer_names]
                for factor in factors:
                    factor.to("cpu")
                draw(layer, self.init.init)
                for factor in factors:
                    factor.to(self.device)
        return self.arrays()

    def replicas(self, count: int) -> list[AdapterModel]:
        """The model and others for as many threads: what is frozen is shared, what is trained is their own.

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
        found.update(b"" if self.init.init == "default" else self.init.init.encode())
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

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the adapter; ValueError when names or shapes differ."""
        parameters = self.parameters()
        if set(arrays) != set(parameters):
            odd = sorted(set(arrays) ^ set(parameters))[:3]
            raise ValueError(f"adapter arrays must be exactly the trained parameters; differing: {odd}")
        _put(parameters, arrays)

    @cached_property
    def packs_up_to(self) -> int:
        """Tokens of the longest sequence that may be packed (``fedsim.model.packing``); 0 if none.

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
        """Modules that own trained parameters, what adapters do to their input, blocks that repeat.

        All of them without LoRA.
        """
        modules = dict.fromkeys(m for m in self.module.modules() if _owns_trained(m))
        for layer in self._lora_layers():
            modules |= dict.fromkeys([layer, *layer.lora_dropout.modules()])
        modules |= dict.fromkeys(blocks_that_repeat(self.module))
        return list(modules if self._lora_layers() else self.module.modules())

    @cached_property
    def checkpoints(self) -> bool:
        """Whether blocks are computed again in the backward pass, which saves what they would keep."""
        return bool(blocks_that_repeat(self.module))

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
        False on quantised layers, which would round a delta away; trying it would replace their weights.
        """
        layers = self._lora_layers()
        if not layers or any(is_quantised(layer.get_base_layer()) for layer in layers):
            return False
        parts = [
            parameter
            for layer in layers
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
                layer.merge(adapter_names=[ADAPTER])
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
        """Tokens that end an answer: of the tokenizer, of the format, and what the base generates until."""
        named = getattr(getattr(self.module, "generation_config", None), "eos_token_id", None)
        more = named if isinstance(named, (list, tuple)) else [named]
        own = (self.tokenizer.eos_token_id, self.fmt.end_id)
        return frozenset(int(token) for token in (*own, *more) if token is not None)

    @property
    def pad_id(self) -> int:
        """What fills rows; causality and masks hide it. The end marker, where a pad token is not embedded."""
        pad = self.tokenizer.pad_token_id
        usable = pad is not None and pad < self.vocabulary
        return int(pad if usable else self.tokenizer.eos_token_id)
