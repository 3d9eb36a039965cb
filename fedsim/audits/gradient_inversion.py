"""Gradient inversion: a server that follows the protocol reads a client's training text off its update.

After DAGER (Petrov et al., 2024, arXiv:2405.15586), on LoRA factors. For y = W x + s B A x with inputs X and
output gradients G of all tokens, the gradient of A is s B' G' X and that of B is s G' X A': their rows are
combinations of the tokens' x, or of their A x. In the first block x is known for every token of the
vocabulary; those that lie in the measured span were in the batch. In the next adapted block x depends on all
tokens before it, which orders them: a prefix grows by whichever token keeps it in that block's span.

What the server must have: the adapter that the client started from, and the update of *one* step of plain
SGD, which is the gradient times -lr. Rescaling it (clipping, weights) changes no span; a small learning rate
costs digits, since the update is a difference of fp32 weights. What spoils it: AdamW, whose first step is
nearly the gradient's sign and of full rank; weight decay; dropout on the adapter's input; noise. After
several steps tokens are still found, for what enters the first block does not depend on the adapter, but
mostly not their order, for what enters later blocks does. Several clients add up their batches.

Contributing are all tokens up to the last one that is fed, those of the prompt too, since answers attend to
them. The end-of-sequence marker is never fed, and a last token after which the model is already certain of
the marker leaves a gradient below the rounding of fp32; ``completion.match_next`` may find it as a label.
Fewer positions may contribute than the adapted query, key and value layers have ranks together (through A,
once B is not zero), or than one layer has (through B: a fresh adapter).

>>> recovered = Recovered(tokens=frozenset({5, 6, 9}), sequences=((5, 6),), residuals=(0.1,), factor="A",
...                       ranks=(3, 2), capacity=(16, 16))
>>> {name: round(value, 2) for name, value in score(recovered, [(5, 6, 7)]).items()}
{'token_recall': 0.67, 'token_precision': 0.67, 'exact': 0.0, 'rouge_l': 0.8}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.audits.attention_inputs import Site, attention_sites, holding
from fedsim.audits.span_test import Factor, Membership, same_input
from fedsim.audits.spans import Float64
from fedsim.metrics.rouge import rouge
from fedsim.model.adapter import AdapterModel
from fedsim.model.vectors import Arrays, Layout, from_vector

TOLERANCE = 20.0
WIDTH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """What an update gave away.

    ``tokens`` were somewhere in the batch. ``sequences`` are token ids in order, the longest first, and among
    equals the one that fits best; ``residuals`` say how badly each fits at its worst position, in units of
    what the test allows, in [0, 1]. ``factor`` is the one whose gradient was used. ``ranks`` are those of the
    gradients of the two blocks, ``capacity`` the largest they could be: at capacity there was noise, or too
    many tokens.
    """

    tokens: frozenset[int]
    sequences: tuple[tuple[int, ...], ...]
    residuals: tuple[float, ...]
    factor: Factor
    ranks: tuple[int, int]
    capacity: tuple[int, int]


def invert(
    model: AdapterModel,
    adapter: Arrays,
    update: NDArray[np.float32],
    *,
    tolerance: float = TOLERANCE,
    width: int = WIDTH,
) -> Recovered:
    """Recover the text behind an ``update`` (d,), its entries in the order of ``model.names``.

    An input fits when what it leaves outside the span is at most ``tolerance`` times what a member would
    leave, and at most ``span_test.CONTRAST`` of what the vocabulary leaves on average. What a member would
    leave follows from the gradient's singular values: their last drop gives the rank, those behind it the
    noise (``Span.rounding``). Measured on the embedded base, members leave 1 to 3 times that where noise is
    the same in all entries and up to 15 times where it is fp32's; others leave 45 times and more without
    noise. ``width`` is how many prefixes are kept.

    Edge cases: nothing is recovered from an update of zeros or of noise, and nothing or little when more
    tokens contributed than the rank allows. A sequence that is the beginning of another one is not listed.
    Under ``lora.train: B`` the A factors are taken from the module.

    Raises:
        ValueError: the adapter has no LoRA on the attention values of the first and one more block;
            ``update`` has another size or is not finite; tolerance or width is not positive.
    """
    if not tolerance > 0 or width < 1:
        raise ValueError(f"tolerance={tolerance} must be > 0 and width={width} must be >= 1")
    _check_update(update, adapter)
    gradients = from_vector(update, adapter)
    sites = attention_sites(model)
    with holding(model, adapter):
        factor = _factor_to_use(model, adapter, sites)
        first, second = (
            Membership.of(model, site, gradients, factor=factor, tolerance=tolerance) for site in sites
        )
        choices = _choices(first, second.most_positions)
        found = _search(second, choices, width)
    return Recovered(
        tokens=frozenset(token for tokens in choices for token in tokens.tolist()),
        sequences=tuple(prefix.ids for prefix in found),
        residuals=tuple(prefix.excess for prefix in found),
        factor=factor,
        ranks=(first.span.rank, second.span.rank),
        capacity=(first.capacity, second.capacity),
    )


def _check_update(update: NDArray[np.float32], adapter: Arrays) -> None:
    size = Layout.of(adapter).size
    if update.shape != (size,):
        raise ValueError(f"update has shape {update.shape}, but the adapter has {size} entries")
    if not np.isfinite(update).all():
        raise ValueError("update is not finite; training diverged, or this is not an update")


def score(recovered: Recovered, truth: Sequence[Sequence[int]]) -> dict[str, float]:
    """How much of the true sequences was recovered, each in [0, 1].

    ``truth`` holds token ids as they were fed: without the end marker.
    ``token_recall``: share of the distinct true tokens that were recovered; ``token_precision``: share of the
    recovered ones that are true, 0 if there are none; ``exact``: share of the true sequences that were
    recovered to the last token; ``rouge_l``: ROUGE-L F1 of each true sequence's best match, on average.

    Raises:
        ValueError: there is no true sequence, or one is empty.
    """
    if not truth or not all(len(ids) for ids in truth):
        raise ValueError(f"truth={truth!r} must hold at least one sequence, and each at least one token")
    true_tokens = {token for ids in truth for token in ids}
    hits = len(true_tokens & recovered.tokens)
    best = [max((_rouge_l(ids, guess) for guess in recovered.sequences), default=0.0) for ids in truth]
    return {
        "token_recall": hits / len(true_tokens),
        "token_precision": hits / len(recovered.tokens) if recovered.tokens else 0.0,
        "exact": float(np.mean([tuple(ids) in recovered.sequences for ids in truth])),
        "rouge_l": float(np.mean(best)),
    }


def _rouge_l(truth: Sequence[int], guess: Sequence[int]) -> float:
    return rouge(" ".join(map(str, truth)), " ".join(map(str, guess))).rouge_l_f1


def _factor_to_use(model: AdapterModel, adapter: Arrays, sites: Iterable[Site]) -> Factor:
    """A where it is trained behind a B that lets gradients through, else B."""
    through_a = all(
        f"{site.value}.lora_A.default.weight" in adapter and site.factor(model, site.value, "B").any()
        for site in sites
    )
    return "A" if through_a else "B"


# --------------------------------------------------------------------------------- the search


class _Prefix(NamedTuple):
    """Tokens, how badly the worst of them fits, and what the last one's input is, (E,)."""

    ids: tuple[int, ...]
    excess: float
    input_E: Float64


def _choices(first: Membership, positions: int) -> list[NDArray[np.int64]]:
    """The tokens that can have been at each position."""
    if not first.span.tells:
        return []
    apart = positions if first.depends_on_position() else 1
    fitting = [
        np.flatnonzero(first.excess(first.inputs(first.vocabulary, first_position=position)) <= 1.0)
        for position in range(apart)
    ]
    return fitting * (positions // apart)


def _search(second: Membership, choices: Sequence[NDArray[np.int64]], width: int) -> list[_Prefix]:
    """Sequences whose every position lies in the span of a later block, the longest first.

    A prefix that nothing continues is a sequence.
    """
    if not second.span.tells:
        return []
    alive, found = [_Prefix((), 0.0, np.zeros(()))], list[_Prefix]()
    for following in choices:
        longer = _continuations(second, alive, following)
        continued = {prefix.ids[:-1] for prefix in longer}
        found += [prefix for prefix in alive if prefix.ids not in continued]
        alive = sorted(longer, key=lambda prefix: prefix.excess)[:width]
    return sorted((p for p in [*found, *alive] if p.ids), key=lambda p: (-len(p.ids), p.excess))


def _continuations(
    second: Membership, prefixes: Sequence[_Prefix], following: NDArray[np.int64]
) -> list[_Prefix]:
    """Each prefix with each token that fits behind it.

    Not with one whose input is that of the token before: without positions, an opening token may be repeated
    for ever, since attention over equal values gives that value.
    """
    grown = [(prefix, token) for prefix in prefixes for token in following.tolist()]
    if not grown:
        return []
    x_NE = second.inputs(np.array([(*prefix.ids, token) for prefix, token in grown], dtype=np.int64))
    before_NE = np.stack([np.broadcast_to(prefix.input_E, x_NE.shape[1:]) for prefix, _ in grown])
    excess_N = np.where(same_input(before_NE, x_NE), np.inf, second.excess(x_NE))
    return [
        _Prefix((*prefix.ids, token), max(prefix.excess, float(excess)), x_E)
        for (prefix, token), excess, x_E in zip(grown, excess_N, x_NE, strict=True)
        if excess <= 1.0
    ]
