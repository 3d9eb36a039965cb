"""A keyword filter at the model's input: the cheap cheat that unlearning must be told from.

Guardrail baselines (Thaker et al., 2024, arXiv:2403.03329): nothing is unlearned; a prompt that names
something from a forgotten question is not answered. Keywords are the forgotten questions' names: words with
a capital that do not begin the question, and where it has none its longest word. Known weakness: whoever
avoids the words, or has the weights, gets the answer (``leave`` is the same model without the filter), and
namesakes are refused.

>>> sorted(keywords(["What is the genre of Moru Viti?", "which year was it?"]))
['Moru', 'Viti', 'which']
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsim.unlearning.protocol import MethodConfig, Promise
from privacy import Capability

if TYPE_CHECKING:
    import torch

    from fedsim.data.records import Record
    from fedsim.model.predictor import Predictor


def keywords(questions: Iterable[str]) -> frozenset[str]:
    """The words by which questions are recognised."""
    found: set[str] = set()
    for question in questions:
        words = re.findall(r"\w+", question)
        names = [word for word in words[1:] if word[0].isupper()]
        found.update(names or sorted(words, key=len)[-1:])
    return frozenset(found)


def _asked(record: Record) -> str:
    """What the user says in a record's conversation; of plain text the text."""
    said = [turn.text for turn in record.earlier if turn.role == "user"]
    return " ".join([*said, record.question]) if record.question else record.answer


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """A predictor that answers nothing, and whose logits are flat, where the text names a keyword."""

    inner: Predictor
    tokenizer: Any
    words: frozenset[str]

    def refuses(self, ids: Sequence[int]) -> bool:
        """Whether a sequence of tokens, read as text, names a keyword."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return not self.words.isdisjoint(re.findall(r"\w+", text))

    def logits(
        self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        """The inner logits (N, V), zeros for all positions of a sequence whose prompt is refused.

        The prompt ends with the first position whose logits are wanted.
        """
        import torch

        logits_NV = self.inner.logits(input_ids_BT, attention_mask_BT, wanted_BT).clone()
        rows = zip(input_ids_BT.tolist(), attention_mask_BT.tolist(), wanted_BT.tolist(), strict=True)
        refused_B = [self.refuses(_prompt(*row)) for row in rows]
        per_row_B = wanted_BT.sum(-1).long().cpu()
        refused_N = torch.tensor(refused_B).repeat_interleave(per_row_B)
        logits_NV[refused_N.to(logits_NV.device)] = 0.0
        return logits_NV

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The inner continuations, empty for a refused prompt."""
        answers = self.inner.generate(prompts, max_new_tokens)
        return [
            [] if self.refuses(prompt) else answer for prompt, answer in zip(prompts, answers, strict=True)
        ]


def _prompt(ids: list[int], mask: list[int], wanted: list[int]) -> list[int]:
    """What stands before the first wanted token."""
    end = next((place + 1 for place, want in enumerate(wanted) if want), len(ids))
    return [token for token, seen in zip(ids[:end], mask[:end], strict=True) if seen]


class KeywordFilter(MethodConfig):
    """Refuse prompts that name what forgotten questions name; the model stays as it is."""

    promise: ClassVar[Promise] = "suppression"
    title: ClassVar[str] = "Keyword filter"
    summary: ClassVar[str] = "refuse prompts that name what forgotten questions name; suppression only"
    needs: ClassVar[frozenset[Capability]] = frozenset()
    guards: ClassVar[bool] = True

    method: Literal["keyword_filter"] = "keyword_filter"

    def guard(self, predictor: Predictor, tokenizer: Any, forgotten: Sequence[Record]) -> Predictor:
        words = keywords(_asked(record) for record in forgotten)
        return Filtered(inner=predictor, tokenizer=tokenizer, words=words)
