"""TOFU's forget quality, between two models."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.metric import Metric


class ForgetQuality(Metric):
    """Forget quality: Kolmogorov-Smirnov p-value of truth ratios against retrain."""

    name: ClassVar[str] = "forget_quality_p"
    title: ClassVar[str] = "forget quality"
    summary: ClassVar[str] = "Kolmogorov-Smirnov p-value of truth ratios against retrain"
    needs: ClassVar[str] = "wrong answers"
