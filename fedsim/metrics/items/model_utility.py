"""TOFU's model utility, over several sets."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.metric import Metric


class ModelUtility(Metric):
    """Model utility: harmonic mean over retain and public sets."""

    name: ClassVar[str] = "model_utility"
    title: ClassVar[str] = "model utility"
    summary: ClassVar[str] = "harmonic mean over retain and public sets"
