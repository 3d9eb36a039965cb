"""What a server reads behind a recovered prefix: the model completes it, or the update tells the last token.

Where an update gives away the beginning of a record but not the private field at its end, a model that has
memorised the field says it (ReCIT, Xie et al., 2025, arXiv:2504.20570). ReCIT's server is malicious: before
the federation it fine-tunes the base on notes that make it memorise more, and it pairs tokens over large
batches. Here is the part of a server that follows the protocol: recover a prefix, let the model as it is
complete it.

An input that leaves no gradient may still be read as a label: the loss on it is most of the update. Given the
prefix, the server computes the gradient for each token that could follow and takes the one that points where
the update does (labels from gradients: Zhao et al., 2020, arXiv:2001.02610).

>>> secrets_told([(4, 5, 6, 7)], [(6, 7), (8, 9)])
{'told': 0.5, 'rouge_l_recall': 0.5}
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.audits.attention_inputs import holding
from fedsim.metrics.rouge import rouge
from fedsim.model.adapter import AdapterModel
from fedsim.model.predictor import Predictor
from fedsim.model.vectors import Arrays


def complete(
    predictor: Predictor, prefixes: Sequence[Sequence[int]], *, max_new_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Each prefix with its greedy continuation of at most ``max_new_tokens`` tokens.

    Raises:
        ValueError: a prefix is empty, or max_new_tokens < 1.
    """
    continuations = predictor.generate(prefixes, max_new_tokens)
    return tuple((*prefix, *more) for prefix, more in zip(prefixes, continuations, strict=True))


def match_next(
    model: AdapterModel,
    adapter: Arrays,
    update: NDArray[np.float32],
    prefix: Sequence[int],
    *,
    candidates: int = 512,
) -> tuple[int, float]:
    """The token behind ``prefix`` whose loss explains ``update`` (d,) best, and how well: cosine in [-1, 1].

    The cosine is that of the update and the negative gradient of the token's NLL, over all of the adapter.
    Only the ``candidates`` tokens that the model finds likeliest are tried; each takes one backward pass. It
    means most when one record was trained on and the model already knows the rest of the answer. Unlike spans
    it does not break under little noise: entries are weighed together.

    Edge cases: an update of zeros gives the likeliest token, with cosine 0.

    Raises:
        ValueError: the prefix is empty, candidates < 1, or the update has another size.
    """
    size = sum(value.size for value in adapter.values())
    if not len(prefix) or candidates < 1 or update.shape != (size,):
        raise ValueError(
            f"prefix={tuple(prefix)} must have a token, candidates={candidates} must be >= 1, and update of "
            f"shape {update.shape} must have shape ({size},)"
        )
    with holding(model, adapter), torch.enable_grad():
        parameters = list(model.parameters().values())
        ids = torch.tensor([list(prefix)], device=model.device)
        nll_V = -model.module(input_ids=ids, use_cache=False).logits[0, -1].float().log_softmax(-1)
        tried = nll_V.argsort(stable=True)[:candidates].tolist()
        cosines = []
        for token in tried:
            gradients = torch.autograd.grad(nll_V[token], parameters, retain_graph=True)
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).cpu().double().numpy()
            cosines.append(_cosine(-flat, update.astype(np.float64)))
    best = int(np.argmax(cosines))
    return int(tried[best]), float(cosines[best])


def secrets_told(completed: Sequence[Sequence[int]], secrets: Sequence[Sequence[int]]) -> dict[str, float]:
    """How much of the secrets (token ids) the completed sequences tell, each in [0, 1].

    ``told``: share of the secrets that stand in a sequence as they are; ``rouge_l_recall``: share of a
    secret's tokens that its best sequence has in order, on average.

    Raises:
        ValueError: there is no secret, or one is empty.
    """
    if not secrets or not all(len(secret) for secret in secrets):
        raise ValueError(f"secrets={secrets!r} must hold at least one secret, and each at least one token")
    told = [any(_holds(ids, secret) for ids in completed) for secret in secrets]
    recall = [max((_recall(secret, ids) for ids in completed), default=0.0) for secret in secrets]
    return {"told": float(np.mean(told)), "rouge_l_recall": float(np.mean(recall))}


def _cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norms if norms > 0.0 else 0.0


def _holds(ids: Sequence[int], secret: Sequence[int]) -> bool:
    size = len(secret)
    return any(tuple(ids[at : at + size]) == tuple(secret) for at in range(len(ids) - size + 1))


def _recall(secret: Sequence[int], ids: Sequence[int]) -> float:
    return rouge(" ".join(map(str, secret)), " ".join(map(str, ids))).rouge_l_recall
