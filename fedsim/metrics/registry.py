"""Every metric by name: one line each. Tables hold them in this order."""

from __future__ import annotations

from fedsim.metrics.metric import Metric
from fedsim.plugins import registered

_LISTED = (
    "nll:Nll",
    "probability:Probability",
    "fact_probability:FactProbability",
    "paraphrase_probability:ParaphraseProbability",
    "truth_ratio:TruthRatio",
    "choice_probability:ChoiceProbability",
    "exact_memorisation:ExactMemorisation",
    "extraction_strength:ExtractionStrength",
    "min_k:MinK",
    "membership_auc:MembershipAuc",
    "rouge_l_recall:RougeRecall",
    "rouge_l_f1:RougeF1",
    "forget_quality_p:ForgetQuality",
    "model_utility:ModelUtility",
)
METRICS = registered(Metric, _LISTED, package="fedsim.metrics.items", group="fedsim.metrics", tag="name")

for _metric in METRICS.values():
    if _metric.headline and (not _metric.known_is_higher or _metric.unit != "0 to 1"):
        raise TypeError(f"metric {_metric.name}: a headline is from 0 to 1 and rises with knowledge")

DEFAULT_HEADLINE = "fact_probability"
HEADLINES = tuple(name for name, metric in METRICS.items() if metric.headline)
"""Metrics that titles and verdicts may quote."""
TRACKED = tuple(
    sorted(
        (name for name, metric in METRICS.items() if metric.tracked),
        key=lambda name: name != DEFAULT_HEADLINE,
    )
)
"""Metrics whose trajectories are measured, the default headline first."""
KNOWN_IS_LOWER = frozenset(name for name, metric in METRICS.items() if not metric.known_is_higher)
"""Metrics that fall as knowledge grows; all others rise."""
