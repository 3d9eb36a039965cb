"""A membership attack by loss, over a set of records."""

from __future__ import annotations

from typing import ClassVar

from fedsim.metrics.metric import Metric


class MembershipAuc(Metric):
    """Membership AUC: loss attack, forgotten records against holdout."""

    name: ClassVar[str] = "membership_auc"
    title: ClassVar[str] = "membership AUC"
    summary: ClassVar[str] = "loss attack, forgotten records against holdout"
    tracked: ClassVar[bool] = True
