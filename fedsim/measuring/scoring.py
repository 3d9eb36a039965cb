"""Every cheap metric of a probe, from one forward pass.

>>> scores = ItemScores(record_ids=("a", "b"), subjects=("x", "y"), values={
...     "probability": np.array([1.0, 0.5]), "truth_ratio": np.array([0.25, np.nan])})
>>> summarise(scores, role="retain")
{'probability': 0.75, 'truth_ratio_score': 0.75}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.measuring.probe import Probe, ProbeKind
from fedsim.metrics.arrays import BoolArray, FloatArray
from fedsim.metrics.likelihood import mean_nll
from fedsim.metrics.metric import Answers
from fedsim.metrics.registry import METRICS
from fedsim.metrics.truth_ratio import forget_score, retain_score
from fedsim.model.predictor import Predictor


class DivergedError(ValueError):
    """The predictor's outputs are not finite: the adapter has diverged and cannot be measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemScores:
    """Per-record metrics: ``values[metric]`` has shape (len(record_ids),), NaN where it does not apply.

    ``generated`` holds the greedy answers, empty when none were asked for.
    """

    record_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    values: Mapping[str, FloatArray]
    generated: tuple[str, ...] = ()


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

    The metrics are those of the registry; those that read text need ``generate``. A greedy answer is no
    longer than the probe's longest answer and ``max_new_tokens``.

    Raises:
        ValueError: batch_size < 1.
        DivergedError: the predictor gives logits that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be >= 1")
    generated: tuple[str, ...] = ()
    if generate:
        if continuations is None:
            (continuations,) = continue_prompts(predictor, [probe], max_new_tokens)
        generated = tuple(tokenizer.batch_decode(continuations, skip_special_tokens=True))
    answers = _answers(probe, *_teacher_forced(predictor, probe, batch_size), generated)
    found = {
        name: metric.compute(answers) for name, metric in METRICS.items() if generate or not metric.reads_text
    }
    values = {name: value for name, value in found.items() if value is not None}
    return ItemScores(
        record_ids=tuple(record.record_id for record in probe.records),
        subjects=tuple(record.subject for record in probe.records),
        values=values,
        generated=generated,
    )


def _answers(probe: Probe, log_probs_N: FloatArray, hits_N: BoolArray, said: Sequence[str]) -> Answers:
    """What metrics see of the probe's tokens and of what was said."""
    log_probs_SA, hits_SA = _by_sequence(probe, log_probs_N), _by_sequence(probe, hits_N)
    with_end_SA = _by_sequence(probe, np.ones_like(hits_N))
    tofu_S = np.append(mean_nll(log_probs_SA, with_end_SA), np.nan)  # NO_ROW reads the NaN at the end
    rows = probe.answer_row_I
    return Answers(
        log_probs_IA=log_probs_SA[rows],
        mask_IA=_by_sequence(probe, ~probe.end_N)[rows],
        fact_IA=_by_sequence(probe, probe.fact_N)[rows],
        hits_IA=hits_SA[rows],
        nll_I=tofu_S[rows],
        truth_I=tofu_S[probe.truth_row_I],
        asked_otherwise_I=tofu_S[probe.asked_otherwise_row_I],
        wrong_IW=tofu_S[probe.wrong_rows_IW],
        said=said,
        right=probe.right,
    )


def continue_prompts(
    predictor: Predictor,
    probes: Sequence[Probe],
    max_new_tokens: int | None = None,
    *,
    first: int | None = None,
) -> list[list[list[int]]]:
    """Greedy answers to the prompts of several probes, generated together; each probe's to its own length.

    With ``first``, so many prompts of each probe are answered.
    """
    asked = [probe.prompts[:first] for probe in probes]
    limits = [min(probe.max_new_tokens, max_new_tokens or probe.max_new_tokens) for probe in probes]
    found = iter(predictor.generate([prompt for prompts in asked for prompt in prompts], max(limits)))
    return [[next(found)[:limit] for _ in prompts] for prompts, limit in zip(asked, limits, strict=True)]


def summarise(scores: ItemScores, *, role: ProbeKind) -> dict[str, float]:
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
