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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from fedsim.forward import evaluating, logits_at, packed_logits_at
from fedsim.packing import Packing


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
    ``batch_size`` bounds how many prompts are continued at once. ``shares_prefixes`` is for models that
    may be packed.
    """

    model: torch.nn.Module
    pad_id: int
    eos_id: int
    batch_size: int = 128
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
        packing = Packing.of_prefixes(ids_BT, lengths_B)
        return packed_logits_at(self.model, wanted_BT, ids_BT, packing)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of at most ``max_new_tokens`` tokens; stops before end-of-sequence.

        Prompts of like length are run together, so that a row carries little padding.

        Raises:
            ValueError: a prompt is empty, or max_new_tokens < 1.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be >= 1")
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("every prompt must have at least one token")
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: list[list[int]] = [[] for _ in prompts]
        with evaluating(self.model), torch.inference_mode():
            for begin in range(0, len(by_length), self.batch_size):
                chosen = by_length[begin : begin + self.batch_size]
                tokens = self._continue([prompts[index] for index in chosen], max_new_tokens)
                for index, row in zip(chosen, tokens.tolist(), strict=True):
                    answers[index] = row[: row.index(self.eos_id)] if self.eos_id in row else row
        return answers

    def _continue(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> torch.Tensor:
        """New tokens (B, N), N <= max_new_tokens; what follows a row's end-of-sequence has no meaning."""
        ids, mask = _left_padded(prompts, pad_id=self.pad_id, device=self._device())
        positions = _positions(mask)
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
        cache = None
        steps: list[torch.Tensor] = []
        while len(steps) < max_new_tokens and not bool(finished.all()):
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = output.logits[:, -1].argmax(-1)
            steps.append(chosen)
            finished |= chosen == self.eos_id
            cache, ids = output.past_key_values, chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
        return torch.stack(steps, dim=1)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


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
