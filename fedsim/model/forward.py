"""A forward pass without waste: no logits where there are no answers, no padding where it can be avoided.

Prompts need hidden states but no logits, and with real vocabularies logits are most of a pass's memory.
Sequences lie one a row, padded on the right where causality hides it; or packed, all behind each other in one
row (see ``packing``). Legend: B sequences, T positions of the longest, S rows and P positions of what is
fed, N answer tokens of all sequences in order, A answer tokens of the longest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsim.model.packing import Packing
from fedsim.model.text import IGNORED, Batch


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a model says about the answers of a batch.

    ``logits_NV`` predict the answer tokens ``targets_N``; ``used_BA`` has a flag for each answer token, at
    the left of its row; ``nll_B`` is each sample's summed negative log-likelihood in nats, ``count_B`` its
    answer tokens.
    """

    logits_NV: torch.Tensor
    targets_N: torch.Tensor
    used_BA: torch.Tensor
    nll_B: torch.Tensor
    count_B: torch.Tensor
    hidden_NH: torch.Tensor | None = None
    """What leaves a block where answer tokens are predicted, if that was asked for."""
    refusal: Pass | None = None
    """What the model says about a refusal to the same questions, if that was asked for."""

    @classmethod
    def of(cls, logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> Pass:
        """From all logits; those at position t predict the token at t + 1."""
        used_BT = labels_BT[:, 1:] != IGNORED
        return cls.at_answers(logits_BTV[:, :-1][used_BT], labels_BT)

    @classmethod
    def at_answers(cls, logits_NV: torch.Tensor, labels_BT: torch.Tensor) -> Pass:
        """From the logits that predict the labels, in the order of samples and tokens."""
        used_BT = labels_BT[:, 1:] != IGNORED
        count_B = used_BT.sum(-1)
        columns = torch.arange(int(count_B.max()) if len(count_B) else 0, device=labels_BT.device)
        used_BA = columns < count_B[:, None]
        logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        targets_N = labels_BT[:, 1:][used_BT]
        nll_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
        nll_B = _by_sample(nll_N, used_BA).sum(-1)
        return cls(logits_NV=logits_NV, targets_N=targets_N, used_BA=used_BA, nll_B=nll_B, count_B=count_B)

    @property
    def token_nll(self) -> torch.Tensor:
        """Nats of each answer token, (N,)."""
        return torch.nn.functional.cross_entropy(self.logits_NV, self.targets_N, reduction="none")

    @property
    def mean_nll(self) -> torch.Tensor:
        """Nats per answer token of each sample, (B,); 0 for a sample without any."""
        return self.sample_means(self.nll_B)

    def sample_sums(self, values_N: torch.Tensor) -> torch.Tensor:
        """Each sample's sum of a value per answer token, (B,)."""
        return _by_sample(values_N, self.used_BA).sum(-1)

    def sample_means(self, sums_B: torch.Tensor) -> torch.Tensor:
        """Sums divided by the number of the sample's own answer tokens, (B,)."""
        return sums_B / self.count_B.clamp(min=1)

    def token_means(self, values_N: torch.Tensor) -> torch.Tensor:
        """Each sample's mean of a value per answer token, (B,); 0 for a sample without any."""
        return self.sample_means(self.sample_sums(values_N))

    def samples(self, first: int, last: int) -> Pass:
        """The part of samples ``first`` to ``last``, the last one not included."""
        begin, end = int(self.count_B[:first].sum()), int(self.count_B[:last].sum())
        return Pass(
            logits_NV=self.logits_NV[begin:end],
            targets_N=self.targets_N[begin:end],
            used_BA=self.used_BA[first:last],
            nll_B=self.nll_B[first:last],
            count_B=self.count_B[first:last],
            hidden_NH=None if self.hidden_NH is None else self.hidden_NH[begin:end],
            refusal=None if self.refusal is None else self.refusal.samples(first, last),
        )

    def take(self, rows: torch.Tensor) -> Pass:
        """Some samples, in this order."""
        places_BA = self.count_B.new_zeros(self.used_BA.shape)
        places_BA[self.used_BA] = torch.arange(len(self.logits_NV), device=places_BA.device)
        places_N = places_BA[rows][self.used_BA[rows]]
        return Pass(
            logits_NV=self.logits_NV[places_N],
            targets_N=self.targets_N[places_N],
            used_BA=self.used_BA[rows],
            nll_B=self.nll_B[rows],
            count_B=self.count_B[rows],
            hidden_NH=None if self.hidden_NH is None else self.hidden_NH[places_N],
        )

    def with_refusals(self, counts: Sequence[int]) -> Pass:
        """A pass over groups of both answers as one over the own answers, with that over refusals beside it.

        Group g is ``counts[g]`` samples with their own answers, then the same with refusals.
        """
        own: list[int] = []
        refused: list[int] = []
        begin = 0
        for count in counts:
            own += range(begin, begin + count)
            refused += range(begin + count, begin + 2 * count)
            begin += 2 * count
        rows = [torch.tensor(one, dtype=torch.int64, device=self.nll_B.device) for one in (own, refused)]
        return replace(self.take(rows[0]), refusal=self.take(rows[1]))


def _by_sample(values_N: torch.Tensor, used_BA: torch.Tensor) -> torch.Tensor:
    """Values of answer tokens as (B, A), zero after a sample's last."""
    return values_N.new_zeros(used_BA.shape).masked_scatter(used_BA, values_N)


def forward_with_hidden(module: Any, batch: Batch, layer: int) -> Pass:
    """The same, not packed, with what leaves a block; blocks count from 0, or from the last one back with -1.

    Raises:
        ValueError: the base has no such block.
    """
    used_BT = batch.labels_BT[:, 1:] != IGNORED
    left: list[torch.Tensor] = []

    def note(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
        left.append(output if isinstance(output, torch.Tensor) else output[0])

    handle = block_of(module, layer).register_forward_hook(note)
    try:
        found = forward(module, batch)
    finally:
        handle.remove()
    return replace(found, hidden_NH=left[-1][used_BT])


def block_of(module: Any, layer: int) -> torch.nn.Module:
    """A transformer block of a causal language model.

    Raises:
        ValueError: there is no such block; names those that are there.
    """
    count = int(module.config.num_hidden_layers)
    lists = [
        part for part in module.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count
    ]
    if not lists:
        raise ValueError(f"no list of {count} blocks was found in this base")
    if not -count <= layer < count:
        raise ValueError(
            f"layer={layer} is not in this base; its blocks are 0 to {count - 1}, or -{count} to -1"
        )
    return lists[0][layer]


def forward(module: Any, batch: Batch, packing: Packing | None = None) -> Pass:
    """Run a causal language model on a batch; what its last column holds is not fed.

    With a ``packing`` of all positions but each sequence's last, they are fed in one row; for models that may
    be packed (``AdapterModel.packs_up_to``). Results are the same up to rounding.
    """
    used_BT = batch.labels_BT[:, 1:] != IGNORED
    ids_BT = batch.input_ids_BT[:, :-1]
    if packing is None:
        logits_NV = logits_at(module, used_BT, input_ids=ids_BT)
    else:
        logits_NV = packed_logits_at(module, used_BT, ids_BT, packing)
    return Pass.at_answers(logits_NV, batch.labels_BT)


def logits_at(module: Any, chosen_SP: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) at chosen positions of what is fed; no others are computed unless the head is trained."""
    with _head_sees_only(module, chosen_SP):
        logits: torch.Tensor = module(**inputs, use_cache=False).logits
    return logits[chosen_SP] if logits.shape[:2] == chosen_SP.shape else logits[0]


def packed_logits_at(
    module: Any, chosen_BT: torch.Tensor, ids_BT: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """The same of sequences that are packed, in the order of sequences and positions."""
    places_N = packing.target_BT[chosen_BT[:, : packing.target_BT.shape[1]]]
    chosen_P = torch.zeros_like(packing.filled_P)
    chosen_P[places_N] = True
    ids_SP, position_ids = packing.gather(ids_BT)[None], packing.positions_P[None]
    with packing.in_attention(module):
        logits = logits_at(module, chosen_P[None], input_ids=ids_SP, position_ids=position_ids)
    if len(places_N) == len(logits) and bool((places_N[1:] > places_N[:-1]).all()):
        return logits
    return logits[(chosen_P.cumsum(0) - 1)[places_N]]


@contextmanager
def _head_sees_only(module: Any, used_SP: torch.Tensor) -> Iterator[None]:
    """Let the output layer compute logits (1, N, V) of chosen positions, unless it is trained itself."""
    head = module.get_output_embeddings()
    if head is None or any(parameter.requires_grad for parameter in head.parameters()):
        yield
        return

    def choose(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0][used_SP][None], *arguments[1:])

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; every submodule's training flag comes back as it was."""
    awake = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in awake:
            part.training = True
