"""The words figures and report share: names of metrics and methods, numbers as people read them.

>>> number(0.0312), number(-0.2), number(float("nan")), listing(["NPO", "SimNPO"])
('0.03', '−0.20', '–', 'NPO and SimNPO')
"""

from __future__ import annotations

import math
from collections.abc import Sequence

METRICS = {
    "nll": "negative log-likelihood",
    "probability": "answer probability",
    "fact_probability": "fact probability",
    "paraphrase_probability": "paraphrase probability",
    "truth_ratio": "truth ratio",
    "exact_memorisation": "exact memorisation",
    "extraction_strength": "extraction strength",
    "rouge_l_recall": "ROUGE-L recall",
    "rouge_l_f1": "ROUGE-L F1",
    "choice_probability": "choice probability",
    "min_k": "Min-K score",
    "membership_auc": "membership AUC",
    "model_utility": "model utility",
    "forget_quality_p": "forget quality",
}
UNITS = {"nll": "nats per token", "min_k": "nats per token"}
"""Metrics that are not shares between 0 and 1."""

METHODS = {
    "keep": "keep (request ignored)",
    "leave": "leave (nothing erased)",
    "retrain": "retrain (reference)",
    "grad_ascent": "gradient ascent",
    "grad_diff": "gradient difference",
    "npo": "NPO",
    "simnpo": "SimNPO",
}
CLASSES = {
    "ignored": "ignored",
    "natural": "natural",
    "exact": "exact",
    "guaranteed": "guaranteed (ε, δ)",
    "approximate": "approximate",
    "suppression": "suppression only",
}
NOTHING = "–"
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def metric_name(metric: str) -> str:
    """``fact_probability`` -> ``fact probability``; an unknown metric loses its underscores."""
    return METRICS.get(metric, metric.replace("_", " "))


def axis_name(metric: str) -> str:
    """The metric with a capital and its unit, for an axis."""
    name = metric_name(metric)
    return f"{name[:1].upper()}{name[1:]} ({UNITS.get(metric, '0 to 1')})"


def subject_name(subject: str) -> str:
    """``forget:2`` -> ``request 2``; public probes lose their underscores."""
    kind, _, rest = subject.partition(":")
    return f"{'request' if kind == 'forget' else kind} {rest}" if rest else subject.replace("_", " ")


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash when it is missing; never ``-0.00``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share as a percentage with a digit more where it is small: 0.0831 -> 8.3 %."""
    if share is None or not math.isfinite(share):
        return NOTHING
    size = abs(100 * share)
    return f"{number(100 * share, 0 if size >= 10 or size == 0 else 1 if size >= 1 else 2)} %"


def p_value(p: float | None) -> str:
    """A p-value: two digits down to .01, below that as a power of ten: ``6·10⁻¹²``."""
    if p is None or not math.isfinite(p):
        return NOTHING
    if p >= 0.01:
        return number(p)
    if p <= 0:
        return "0"
    mantissa, _, exponent = f"{p:.0e}".partition("e-")
    return f"{mantissa}·10⁻{raised(int(exponent))}"


def raised(number: int) -> str:
    """A whole number of at least 0 as an exponent: 12 -> ``¹²``."""
    return str(number).translate(_RAISED)


def listing(names: Sequence[str], most: int = 3) -> str:
    """``a, b and c``; more than ``most`` become ``a, b and 3 others``."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def plural(count: float, noun: str) -> str:
    """``1 round``, ``4 rounds``, ``4.5 rounds``, ``2 branches``."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count:g} {noun}{ending}"


def inside(title: str) -> str:
    """A title as it reads inside a sentence: ``Gradient ascent`` -> ``gradient ascent``, ``NPO`` stays."""
    first = title.partition(" ")[0]
    return title[:1].lower() + title[1:] if first[1:].islower() else title


def capital(sentence: str) -> str:
    """The sentence with a capital at its beginning."""
    return sentence[:1].upper() + sentence[1:]


def short(text: str, most: int = 24) -> str:
    """Text cut to ``most`` characters, the cut marked with an ellipsis."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
