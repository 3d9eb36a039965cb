"""Several models asked as one: the mean of their probabilities.

Legend: B sequences, T positions, N positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsim.model.adapter import AdapterModel
from fedsim.model.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """The ensemble of models of one vocabulary, as a ``Predictor``.

    ``end_ids`` are the tokens that end an answer; ``positions`` is the longest sequence that the models take,
    None for no bound.
    """

    parts: tuple[Predictor, ...]
    end_ids: frozenset[int]
    positions: int | None = None

    @classmethod
    def of(cls, parts: Sequence[Predictor], model: AdapterModel) -> Averaged:
        """The ensemble of predictors that stand on one base."""
        return cls(parts=tuple(parts), end_ids=model.end_ids, positions=model.positions)

    def logits(
        self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        """Logarithms (N, V) of the mean probabilities, fp32."""
        found = [part.logits(input_ids_BT, attention_mask_BT, wanted_BT) for part in self.parts]
        log_probabilities = torch.stack([torch.log_softmax(one.float(), dim=-1) for one in found])
        return torch.logsumexp(log_probabilities, dim=0) - math.log(len(self.parts))

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations; everything is read again for each token, as the parts agree on it."""
        answers: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        for _ in range(max_new_tokens):
            going = [index for index in going if self._has_room(len(prompts[index]) + len(answers[index]))]
            if not going:
                break
            chosen = self._next([[*prompts[index], *answers[index]] for index in going])
            ended = {index for index, token in zip(going, chosen, strict=True) if token in self.end_ids}
            for index, token in zip(going, chosen, strict=True):
                if index not in ended:
                    answers[index].append(token)
            going = [index for index in going if index not in ended]
        return answers

    def _has_room(self, length: int) -> bool:
        return self.positions is None or length < self.positions

    def _next(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest token after each text, (B,)."""
        width = max(map(len, texts))
        ids_BT = torch.tensor([[*text, *[text[-1]] * (width - len(text))] for text in texts])
        ends_B = torch.tensor([len(text) for text in texts])
        mask_BT = (torch.arange(width) < ends_B[:, None]).long()
        wanted_BT = torch.arange(width) == ends_B[:, None] - 1
        return self.logits(ids_BT, mask_BT, wanted_BT).argmax(-1).tolist()
