"""A probe: a fixed set of questions, encoded once, and every cheap metric on it from one forward pass.

Each record gives several token sequences: the question with its answer, with the paraphrased answer and with
each wrong answer (as TOFU does, Maini et al., 2024, arXiv:2401.06121), and the paraphrased question with the
answer. Sequences that occur twice are scored once; all lie in one tensor, those with a common beginning next
to each other, so that a batch is a slice. TOFU's metrics (probability, truth ratio, choice) count the end
marker of an answer as its published evaluation does, all others the answer's own tokens. Legend: I records,
S sequences, T positions, A answer positions, N answer tokens and end markers in all, W wrong answers, V
vocabulary.

>>> scores = ItemScores(record_ids=("a", "b"), subjects=("x", "y"), values={
...     "probability": np.array([1.0, 0.5]), "truth_ratio": np.array([0.25, np.nan])})
>>> summarise(scores, role="retain")
{'probability': 0.75, 'truth_ratio_score': 0.75}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.records import Record
from fedsim.metrics.arrays import BoolArray, FloatArray
from fedsim.metrics.likelihood import choice_probability, mean_nll, probability
from fedsim.metrics.membership import min_k_score
from fedsim.metrics.memorisation import exact_memorisation, extraction_strength
from fedsim.metrics.rouge import rouge
from fedsim.metrics.truth_ratio import forget_score, retain_score, truth_ratio
from fedsim.predictor import Predictor
from fedsim.text import Pair, TextFormat, encode_pair

Role = Literal["forget", "retain", "public"]

KNOWN_IS_LOWER = frozenset({"nll", "truth_ratio"})
"""Item metrics that fall as knowledge grows; all others rise."""

NO_ROW = -1


class DivergedError(ValueError):
    """The predictor's outputs are not finite: the adapter has diverged and cannot be measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A named set of records, ready to be scored; build it with ``build_probe``.

    ``ids_ST`` and ``lengths_S`` hold the sequences in the order of their tokens. Answer token n belongs to
    sequence ``row_N[n]``, is predicted at ``position_N[n]`` and is ``target_N[n]``; ``fact_N`` marks facts,
    ``end_N`` end markers, which follow an answer that was not cut. ``pairs_I`` are the records as trained.
    ``*_row_I`` and ``wrong_rows_IW`` say which sequence serves a record, -1 for none. ``max_new_tokens``
    (the longest answer of any kind, in tokens) bounds generation.
    """

    name: str
    records: tuple[Record, ...]
    pairs_I: tuple[Pair, ...]
    max_new_tokens: int
    ids_ST: torch.Tensor
    lengths_S: NDArray[np.int64]
    row_N: NDArray[np.int64]
    position_N: NDArray[np.int64]
    target_N: torch.Tensor
    fact_N: BoolArray
    end_N: BoolArray
    answer_row_I: NDArray[np.int64]
    asked_otherwise_row_I: NDArray[np.int64]
    truth_row_I: NDArray[np.int64]
    wrong_rows_IW: NDArray[np.int64]

    @property
    def left_out(self) -> int:
        """Wrong answers that are the right one once cut."""
        given = sum(len(record.perturbed_answers) for record in self.records)
        return given - int((self.wrong_rows_IW != NO_ROW).sum())

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """What generation begins with: the prompts of training, cut as there."""
        return [pair.prompt for pair in self.pairs_I]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemScores:
    """Per-record metrics: ``values[metric]`` has shape (len(record_ids),), NaN where it does not apply.

    ``generated`` holds the greedy answers, empty when none were asked for.
    """

    record_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    values: Mapping[str, FloatArray]
    generated: tuple[str, ...] = ()


def build_probe(tokenizer: Any, name: str, records: Sequence[Record], fmt: TextFormat) -> Probe:
    """Encode the records once. Order and content are fixed from here on.

    A record without a paraphrased answer uses its answer in that place, as TOFU's public sets do: the wrong
    answers imitate it. Long texts are cut as in training (``fmt.max_tokens``).

    A wrong answer that is the right one once both are cut is left out: it tells nothing.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError(f"probe {name!r} has no records; a probe needs one at least")
    pairs: dict[Pair, int] = {}

    def add(question: str | None, answer: str | None, fact: str | None = None) -> int:
        if question is None or answer is None:
            return NO_ROW
        return pairs.setdefault(encode_pair(tokenizer, question, answer, fmt, fact=fact), len(pairs))

    answers = [add(record.question, record.answer, record.fact) for record in records]
    asked_otherwise = [add(record.paraphrased_question, record.answer, record.fact) for record in records]
    truths = [
        add(record.question, record.paraphrased_answer) if record.paraphrased_answer is not None else answer
        for record, answer in zip(records, answers, strict=True)
    ]
    most_wrong = max(len(record.perturbed_answers) for record in records)
    wrong = np.full((len(records), most_wrong), NO_ROW)
    for index, record in enumerate(records):
        rows = [add(record.question, text) for text in record.perturbed_answers]
        told = [row for row in rows if row not in (truths[index], answers[index])]
        wrong[index, : len(told)] = told
    listed = list(pairs)
    order = sorted(range(len(listed)), key=[pair.input_ids for pair in listed].__getitem__)
    rank = np.append(np.argsort(order), NO_ROW)
    return Probe(
        name=name,
        records=tuple(records),
        pairs_I=tuple(listed[row] for row in answers),
        max_new_tokens=max(len(pair.fact_mask) for pair in pairs),
        **_layout([listed[index] for index in order]),
        answer_row_I=rank[answers],
        asked_otherwise_row_I=rank[asked_otherwise],
        truth_row_I=rank[truths],
        wrong_rows_IW=rank[wrong],
    )


def score_probe(
    predictor: Predictor,
    tokenizer: Any,
    probe: Probe,
    *,
    generate: bool,
    max_new_tokens: int | None = None,
    continuations: Sequence[Sequence[int]] | None = None,
    batch_size: int = 128,
) -> ItemScores:
    """Score every record; the result does not depend on ``batch_size`` beyond float tolerance.

    ``continuations`` are the prompts' greedy answers where they are known already (``continue_prompts``).

    Metrics (nats are natural-log units): ``nll`` (nats per answer token), ``probability`` (of the answer with
    its end marker), ``fact_probability``, ``paraphrase_probability`` (to the paraphrased question),
    ``truth_ratio`` (R), ``choice_probability`` (the paraphrased answer among the wrong ones),
    ``exact_memorisation``, ``extraction_strength``, ``min_k`` (nats per token), and with ``generate`` also
    ``rouge_l_recall`` and ``rouge_l_f1`` of the greedy answer, which is no longer than the probe's longest
    answer and ``max_new_tokens``.

    Raises:
        ValueError: batch_size < 1.
        DivergedError: the predictor gives logits that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be >= 1")
    log_probs_N, hits_N = _teacher_forced(predictor, probe, batch_size)
    log_probs_SA, mask_SA = _by_sequence(probe, log_probs_N), _by_sequence(probe, ~probe.end_N)
    hits_SA, fact_SA = _by_sequence(probe, hits_N), _by_sequence(probe, probe.fact_N)
    with_end_SA = _by_sequence(probe, np.ones_like(hits_N))
    rows = probe.answer_row_I
    tofu_S = np.append(mean_nll(log_probs_SA, with_end_SA), np.nan)  # NO_ROW reads the NaN at the end
    truth_I, wrong_IW = tofu_S[probe.truth_row_I], tofu_S[probe.wrong_rows_IW]
    values = {
        "nll": mean_nll(log_probs_SA[rows], mask_SA[rows]),
        "probability": probability(tofu_S[rows]),
        "fact_probability": probability(mean_nll(log_probs_SA[rows], fact_SA[rows])),
        "paraphrase_probability": probability(tofu_S[probe.asked_otherwise_row_I]),
        "truth_ratio": truth_ratio(truth_I, wrong_IW),
        "choice_probability": choice_probability(truth_I, wrong_IW),
        "exact_memorisation": exact_memorisation(hits_SA[rows], mask_SA[rows]),
        "extraction_strength": extraction_strength(hits_SA[rows], mask_SA[rows]),
        "min_k": min_k_score(log_probs_SA[rows], mask_SA[rows]),
    }
    generated: tuple[str, ...] = ()
    if generate:
        if continuations is None:
            (continuations,) = continue_prompts(predictor, [probe], max_new_tokens)
        generated = tuple(tokenizer.batch_decode(continuations, skip_special_tokens=True))
        pairs = zip(probe.records, generated, strict=True)
        rouges = [rouge(record.answer, text) for record, text in pairs]
        values["rouge_l_recall"] = np.array([scores.rouge_l_recall for scores in rouges])
        values["rouge_l_f1"] = np.array([scores.rouge_l_f1 for scores in rouges])
    return ItemScores(
        record_ids=tuple(record.record_id for record in probe.records),
        subjects=tuple(record.subject for record in probe.records),
        values=values,
        generated=generated,
    )


def continue_prompts(
    predictor: Predictor, probes: Sequence[Probe], max_new_tokens: int | None = None
) -> list[list[list[int]]]:
    """Greedy answers to the prompts of several probes, generated together; each probe's to its own length."""
    limits = [min(probe.max_new_tokens, max_new_tokens or probe.max_new_tokens) for probe in probes]
    found = iter(predictor.generate([prompt for probe in probes for prompt in probe.prompts], max(limits)))
    return [[next(found)[:limit] for _ in probe.prompts] for probe, limit in zip(probes, limits, strict=True)]


def summarise(scores: ItemScores, *, role: Role) -> dict[str, float]:
    """Means over the records that have a value; metrics that no record has are left out.

    The truth ratio appears as ``truth_ratio_score`` in [0, 1]: min(R, 1/R) for the forget role (1 =
    forgotten), max(0, 1 - R) for retain and public (1 = known). For public sets TOFU's "probability" is
    ``choice_probability``, the probability normalised by the options.

    Raises:
        ValueError: unknown role.
    """
    if role not in ("forget", "retain", "public"):
        raise ValueError(f"role={role!r} must be one of forget, retain, public")
    items = dict(scores.values)
    if "truth_ratio" in items:
        oriented = forget_score if role == "forget" else retain_score
        items["truth_ratio_score"] = oriented(items.pop("truth_ratio"))
    return {name: float(np.nanmean(item)) for name, item in items.items() if not np.isnan(item).all()}


def _fed_length(pair: Pair) -> int:
    """Tokens up to the one that predicts the last token."""
    return len(pair.input_ids) - 1


def _layout(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Tensors of the sequences and flat indices of their answer tokens, in the order of ``pairs``."""
    lengths = np.array([_fed_length(pair) for pair in pairs])
    ids = torch.zeros((len(pairs), int(lengths.max())), dtype=torch.int64)
    for row, pair in enumerate(pairs):
        ids[row, : lengths[row]] = torch.tensor(pair.input_ids[: lengths[row]])
    targets = [pair.input_ids[pair.answer_start :] for pair in pairs]
    ends = [[False] * len(pair.fact_mask) + [True] * pair.ended for pair in pairs]
    return {
        "ids_ST": ids,
        "lengths_S": lengths,
        "row_N": np.repeat(np.arange(len(pairs)), [len(tokens) for tokens in targets]),
        "position_N": np.concatenate([np.arange(p.answer_start - 1, len(p.input_ids) - 1) for p in pairs]),
        "target_N": torch.tensor([token for tokens in targets for token in tokens]),
        "fact_N": np.array([flag for pair in pairs for flag in (*pair.fact_mask, *[False] * pair.ended)]),
        "end_N": np.array([flag for flags in ends for flag in flags]),
    }


def _teacher_forced(predictor: Predictor, probe: Probe, batch_size: int) -> tuple[FloatArray, BoolArray]:
    """Log-probability (nats) of each answer token, and whether it was the argmax, both (N,)."""
    log_probs, hits = [], []
    for begin in range(0, len(probe.lengths_S), batch_size):
        lengths = torch.from_numpy(probe.lengths_S[begin : begin + batch_size])
        width = int(lengths.max())
        mask_BT = (torch.arange(width) < lengths[:, None]).long()
        first, last = np.searchsorted(probe.row_N, [begin, begin + batch_size])
        wanted_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
        wanted_BT[probe.row_N[first:last] - begin, probe.position_N[first:last]] = True
        ids_BT = probe.ids_ST[begin : begin + batch_size, :width]
        logits_NV = predictor.logits(ids_BT, mask_BT, wanted_BT).float()
        target_N1 = probe.target_N[first:last, None].to(logits_NV.device)
        log_probs.append(logits_NV.log_softmax(-1).gather(1, target_N1)[:, 0].cpu())
        hits.append((logits_NV.argmax(-1) == target_N1[:, 0]).cpu())
    joined = torch.cat(log_probs).double().numpy()
    if not np.isfinite(joined).all():
        raise DivergedError(
            f"the predictor gives log-probabilities that are not finite on probe {probe.name!r}; "
            "the adapter has diverged: lower the learning rate, or bound the loss or the update"
        )
    return joined, torch.cat(hits).numpy()


def _by_sequence(probe: Probe, values_N: NDArray[Any]) -> NDArray[Any]:
    """Flat per-token values as (S, A), answer tokens at the left, zero (False) after them."""
    starts = np.searchsorted(probe.row_N, np.arange(len(probe.lengths_S)))
    columns = np.arange(len(probe.row_N)) - starts[probe.row_N]
    padded = np.zeros((len(probe.lengths_S), int(columns.max()) + 1), dtype=values_N.dtype)
    padded[probe.row_N, columns] = values_N
    return padded
