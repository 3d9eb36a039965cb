"""LoRA's dropout from keyed streams: a record's masks are its own, whoever is computed beside it.

In each step every text has a stream, from which each adapted layer draws in the order in which layers are
computed, one value for each of the text's positions and the layer's features. So clients that train together
lose what they lose alone. A layer that is computed again, under checkpointing, has the masks that it had.
Srivastava et al., "Dropout" (2014). Legend: B texts, T positions of the longest, L positions of all texts, P
places of what is fed, I features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from fedsim.model.checkpointing import around
from fedsim.model.packing import Packing, Padded
from fedsim.model.starting import ADAPTER
from fedsim.rng import torch_stream
from fedsim.training.jobs import TrainJob


def rate_of(layer: Any) -> float:
    """The share of its input that a LoRA layer drops in training."""
    module = layer.lora_dropout[ADAPTER]
    return float(module.p) if isinstance(module, torch.nn.Dropout) else 0.0


def drops(module: torch.nn.Module) -> bool:
    """Whether some LoRA layer of a model drops some of its input."""
    return any(rate_of(layer) > 0 for layer in module.modules() if isinstance(layer, LoraLayer))


def streams(job: TrainJob, step: int, chosen: Iterable[int], device: str) -> list[torch.Generator]:
    """The streams of a job's records in a step: of all their first answers, then of all second ones."""
    address = "dropout", job.round, job.client, step
    records = [job.record_ids[position] for position in chosen]
    return [
        torch_stream(job.seed, *address, record, answer, device=device)
        for answer in range(len(job.texts))
        for record in records
    ]


class Masks:
    """The masks of one pass, layer by layer; what is fed is laid out by ``layout``.

    ``generators`` belong to texts of ``lengths_B`` positions, on the device of what is fed. With ``repeats``,
    a layer that draws again draws the same.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        lengths_B: torch.Tensor,
        layout: Packing | Padded,
        *,
        repeats: bool = False,
    ) -> None:
        self._states: dict[object, list[torch.Tensor]] | None = {} if repeats else None
        own_BT = torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None]
        self.generators, self.lengths = generators, lengths_B.tolist()
        self.places_L, self.total = layout.places(own_BT)

    def draw(self, layer: object, rate: float, features: int) -> torch.Tensor:
        """What a layer keeps of its input, (P, I); nothing where there is no text."""
        if self._states is None:
            return self._draw(rate, features)
        now = [generator.get_state() for generator in self.generators]
        if layer not in self._states:
            self._states[layer] = now
            return self._draw(rate, features)
        self._set(self._states[layer])
        try:
            return self._draw(rate, features)
        finally:
            self._set(now)

    def _set(self, states: Sequence[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def _draw(self, rate: float, features: int) -> torch.Tensor:
        device = self.places_L.device
        drawn = [
            torch.empty(length, features, device=device).bernoulli_(1 - rate, generator=generator)
            for length, generator in zip(self.lengths, self.generators, strict=True)
        ]
        kept_PI = torch.zeros(self.total, features, dtype=torch.bool, device=device)
        kept_PI[self.places_L] = torch.cat(drawn).bool()
        return kept_PI


def dropping(module: torch.nn.Module, masks: Masks | None) -> AbstractContextManager[None]:
    """While this holds, PEFT's LoRA layers drop what the masks say; without masks, what torch draws."""
    return nullcontext() if masks is None else around(partial(_dropping, module, masks))


@contextmanager
def _dropping(module: torch.nn.Module, masks: Masks) -> Iterator[None]:
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer) and rate_of(layer) > 0]
    dropouts: list[Any] = [layer.lora_dropout[ADAPTER] for layer in layers]
    try:
        for dropout in dropouts:
            dropout.forward = _forward(dropout, masks)
        yield
    finally:
        for dropout in dropouts:
            dropout.__dict__.pop("forward", None)


def _forward(dropout: torch.nn.Dropout, masks: Masks) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x_BTI: torch.Tensor) -> torch.Tensor:
        if not dropout.training:
            return x_BTI
        kept_PI = masks.draw(dropout, dropout.p, x_BTI.shape[-1])
        return x_BTI * kept_PI.view(x_BTI.shape) / (1 - dropout.p)

    return forward
