"""What is measured on a branch's adapter after a round: probes in, rows of the metric tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.measuring.config import ProbesConfig
from fedsim.measuring.probe import Probe, ProbeKind
from fedsim.measuring.probes import ProbeSet
from fedsim.measuring.scoring import ItemScores, continue_prompts, score_probe, summarise
from fedsim.metrics.membership import auc, loss_score
from fedsim.metrics.utility import model_utility
from fedsim.model.predictor import Predictor
from fedsim.storage.tables import Row

UTILITY_PARTS = ("probability", "rouge_l_recall", "truth_ratio")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Rows of one probing, without the columns that say whose they are (variant, branch, seed)."""

    metrics: tuple[Row, ...]
    items: tuple[Row, ...]
    answers: tuple[Row, ...] = ()


def measure(
    predictor: Predictor,
    tokenizer: Any,
    probes: ProbeSet,
    *,
    config: ProbesConfig,
    detail: Literal["round", "event"],
    generate: bool,
) -> Measurement:
    """Score every probe.

    With ``detail="event"`` the items of all probes are kept and some answers in words, else the items of
    requests.
    """
    metrics: list[Row] = []
    items: list[Row] = []
    scores: dict[str, ItemScores] = {}
    utility: dict[str, float] = {}
    named = list(probes.named())
    answers: Sequence[list[list[int]] | None] = [None] * len(named)
    if generate:
        answers = continue_prompts(predictor, [probe for _, _, probe in named], config.max_new_tokens)
    for (subject, role, probe), continuations in zip(named, answers, strict=True):
        scored = score_probe(predictor, tokenizer, probe, generate=generate, continuations=continuations)
        scores[subject] = scored
        values = _renamed(summarise(scored, role=role))
        metrics.extend({"subject": subject, "metric": name, "value": value} for name, value in values.items())
        if role == "public" or subject == "retain":
            utility |= _utility_parts(subject, role, values)
        if detail == "event" or role == "forget":
            items.extend(_item_rows(subject, scored))
    metrics.extend(_membership(scores))
    metrics.extend(_per_client(scores, probes, config.headline))
    if generate and utility:
        value, parts = model_utility(utility)
        metrics.append({"subject": "model", "metric": "model_utility", "value": value})
        metrics.extend(
            {"subject": "model", "metric": f"utility/{name}", "value": part} for name, part in parts.items()
        )
    quoted = {subject: probe for subject, role, probe in named if role != "retain" and detail == "event"}
    shown = _shown(predictor, tokenizer, quoted, scores, config)
    return Measurement(metrics=tuple(metrics), items=tuple(items), answers=tuple(shown))


def _shown(
    predictor: Predictor,
    tokenizer: Any,
    probes: Mapping[str, Probe],
    scores: Mapping[str, ItemScores],
    config: ProbesConfig,
) -> list[Row]:
    """Greedy answers in words to the first questions of each probe, generated unless they were for scores."""
    if not probes or not config.shown:
        return []
    said = {subject: scores[subject].generated for subject in probes}
    if not all(said.values()):
        found = continue_prompts(predictor, list(probes.values()), config.max_new_tokens, first=config.shown)
        texts = (tokenizer.batch_decode(tokens, skip_special_tokens=True) for tokens in found)
        said = dict(zip(probes, texts, strict=True))
    return [
        {
            "subject": subject,
            "record": record.record_id,
            "question": record.question or tokenizer.decode(prompt, skip_special_tokens=True),
            "right": right,
            "said": text.strip(),
        }
        for subject, probe in probes.items()
        for record, right, prompt, text in zip(
            probe.records[: config.shown], probe.right, probe.prompts, said[subject], strict=False
        )
    ]


def _renamed(values: Mapping[str, float]) -> dict[str, float]:
    """The oriented truth ratio is what tables call truth ratio; its raw form stays with the items."""
    return {("truth_ratio" if k == "truth_ratio_score" else k): v for k, v in values.items()}


def _utility_parts(subject: str, role: ProbeKind, values: Mapping[str, float]) -> dict[str, float]:
    """TOFU's three components of a set; probabilities of public sets are normalised by their options."""
    parts = {}
    for name in UTILITY_PARTS:
        source = "choice_probability" if name == "probability" and role == "public" else name
        if source in values:
            parts[f"{subject}/{name}"] = values[source]
    return parts


def _item_rows(subject: str, scored: ItemScores) -> list[Row]:
    rows: list[Row] = []
    for metric, values in scored.values.items():
        name = "truth_ratio_raw" if metric == "truth_ratio" else metric
        rows.extend(
            {"subject": subject, "record": record, "metric": name, "value": float(value)}
            for record, value in zip(scored.record_ids, values, strict=True)
        )
    return rows


def _membership(scores: Mapping[str, ItemScores]) -> list[Row]:
    """AUC of the loss attack, each request's records against holdout."""
    if "holdout" not in scores:
        return []
    others = loss_score(scores["holdout"].values["nll"])
    return [
        {
            "subject": subject,
            "metric": "membership_auc",
            "value": auc(loss_score(scored.values["nll"]), others),
        }
        for subject, scored in scores.items()
        if subject.startswith("forget:") or subject == "retain"
    ]


def _per_client(scores: Mapping[str, ItemScores], probes: ProbeSet, headline: str) -> list[Row]:
    """The headline metric's mean over each client's probed records."""
    by_client: dict[int, list[float]] = {}
    seen: set[str] = set()
    for subject, scored in scores.items():
        if subject != "retain" and not subject.startswith("forget:"):
            continue
        for record, value in zip(scored.record_ids, scored.values[headline], strict=True):
            if record not in seen and np.isfinite(value):
                seen.add(record)
                by_client.setdefault(probes.client_of[record], []).append(float(value))
    return [
        {"subject": f"client:{client}", "metric": headline, "value": float(np.mean(values))}
        for client, values in sorted(by_client.items())
    ]
