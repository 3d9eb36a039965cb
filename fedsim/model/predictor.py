"""What metrics and audits may see of a model: token ids in, logits or a continuation out.

Behind the protocol may stand one network, an ensemble, or a network with a guard at its output; all are
probed alike. ``CausalPredictor`` is the plain case, a Hugging Face causal language model.
Legend: B sequences, T positions, N positions whose logits are wanted, V vocabulary.

>>> class Uniform:
...     def logits(self, input_ids_BT, attention_mask_BT, wanted_BT):
...         return torch.zeros((int(wanted_BT.sum()), 7))
...     def generate(self, prompts, max_new_tokens):
...         return [[] for _ in prompts]
>>> isinstance(Uniform(), Predictor)
True
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from fedsim.model.adapter import AdapterModel
from fedsim.model.forward import evaluating, logits_at, packed_logits_at
from fedsim.model.packing import Packing


@runtime_checkable
class Predictor(Protocol):
    """A model as its users see it. Its answers are a function of the input alone."""

    def logits(
        self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        """Next-token logits (N, V) at the wanted positions, in the order of sequences and positions."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The greedy continuation of each prompt, without its end-of-sequence marker."""
        ...


@dataclass(frozen=True, kw_only=True)
class CausalPredictor:
    """A Hugging Face causal LM, or a PEFT model around one, on whatever device it is.

    ``model`` is put into evaluation mode during a call and back afterwards; no gradient flows.
    ``end_ids`` are the tokens that end an answer; ``batch_size`` bounds how many prompts are continued at
    once. ``positions`` is the longest sequence that the model takes, None for no bound. Without ``pads``,
    prompts run together only where they are of one length: the model does not hide padding on the left.
    ``shares_prefixes`` is for models that may be packed.
    """

    model: torch.nn.Module
    pad_id: int
    end_ids: frozenset[int]
    batch_size: int = 128
    positions: int | None = None
    pads: bool = True
    shares_prefixes: bool = False

    def logits(
        self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        """Logits (N, V) of padded sequences, padding on either side, on the model's device.

        Right padding is hidden by causality and needs no mask: its rows do not depend on their neighbours.
        """
        device = self._device()
        ids, mask, wanted = (x.to(device) for x in (input_ids_BT, attention_mask_BT, wanted_BT.bool()))
        with evaluating(self.model), torch.inference_mode():
            if bool((mask[:, 1:] > mask[:, :-1]).any()):
                placed = {"attention_mask": mask, "position_ids": _positions(mask)}
                return logits_at(self.model, wanted, input_ids=ids, **placed)
            if self.shares_prefixes:
                return self._logits_of_prefixes(ids, mask.sum(-1), wanted)
            return logits_at(self.model, wanted, input_ids=ids)

    def _logits_of_prefixes(
        self, ids_BT: torch.Tensor, lengths_B: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        """The same, computing what sequences have in common once."""
        packing = Packing.of(lengths_B, [len(lengths_B)], ids_BT.device, ids_BT=ids_BT)
        return packed_logits_at(self.model, wanted_BT, ids_BT, packing)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of at most ``max_new_tokens`` tokens; stops before an end marker.

        Prompts of like length are run together, so that a row carries little padding. A continuation ends
        where the model has no more positions.

        Raises:
            ValueError: a prompt is empty, or max_new_tokens < 1.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be >= 1")
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("every prompt must have at least one token")
        answers: list[list[int]] = [[] for _ in prompts]
        with evaluating(self.model), torch.inference_mode():
            for chosen in self._batches(prompts):
                tokens = self._continue([prompts[index] for index in chosen], max_new_tokens)
                for index, row in zip(chosen, tokens.tolist(), strict=True):
                    room = len(row) if self.positions is None else self.positions - len(prompts[index])
                    ends = (place for place, token in enumerate(row) if token in self.end_ids)
                    answers[index] = row[: min(next(ends, len(row)), max(room, 0))]
        return answers

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Which prompts run together, by length; of one length where the model does not hide padding."""
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        alike = itertools.groupby(by_length, key=lambda index: 0 if self.pads else len(prompts[index]))
        for _, group in alike:
            together = list(group)
            for begin in range(0, len(together), self.batch_size):
                yield together[begin : begin + self.batch_size]

    def _continue(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> torch.Tensor:
        """New tokens (B, N), N <= max_new_tokens; what follows a row's end marker has no meaning.

        A model that gives no cache reads everything again for each token.
        """
        ids, mask = _left_padded(prompts, pad_id=self.pad_id, device=self._device())
        seen = ids
        ends = torch.tensor(sorted(self.end_ids), device=ids.device)
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
        most = self.positions or sys.maxsize
        cache, cached = None, True
        steps: list[torch.Tensor] = []
        while len(steps) < max_new_tokens and not bool(finished.all()):
            positions = _positions(mask)[:, -ids.shape[1] :].clamp(max=most - 1)
            placed = {"attention_mask": mask, "position_ids": positions} if self.pads else {}
            output = self.model(
                input_ids=ids,
                **placed,
                **({"past_key_values": cache, "use_cache": True} if cached else {"use_cache": False}),
                logits_to_keep=torch.tensor([ids.shape[1] - 1], device=ids.device),
            )
            if cached and getattr(output, "past_key_values", None) is None:
                cached, ids = False, seen
                continue
            chosen = output.logits[:, -1].argmax(-1)
            steps.append(chosen)
            finished |= torch.isin(chosen, ends)
            seen = torch.cat([seen, chosen[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(chosen[:, None])], dim=1)
            finished |= mask.sum(-1) >= most
            cache, ids = (output.past_key_values, chosen[:, None]) if cached else (None, seen)
        return torch.stack(steps, dim=1)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def predictor_of(
    model: AdapterModel, module: torch.nn.Module, *, shares_prefixes: bool = False
) -> CausalPredictor:
    """The predictor of a model's module, as `AdapterModel.measuring` gives it."""
    return CausalPredictor(
        model=module,
        pad_id=model.pad_id,
        end_ids=model.end_ids,
        positions=model.positions,
        pads=model.hides_left_padding,
        shares_prefixes=shares_prefixes,
    )


def _positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Position of each token in its own sequence, whatever padding stands before it."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def _left_padded(
    prompts: Sequence[Sequence[int]], *, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    rows = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(masks, device=device)
