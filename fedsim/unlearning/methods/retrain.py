"""Retraining: the exact method, and the reference every other is measured against.

The same life replayed from the snapshot before the forgotten client's first round, without its data.
The timeline unrolls it, so there are no rounds to plan.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from fedsim.unlearning.protocol import MethodConfig, Promise
from privacy import Capability


class Retrain(MethodConfig):
    """Replay the life without the forgotten data."""

    promise: ClassVar[Promise] = "exact"
    title: ClassVar[str] = "Retrain"
    has_branch: ClassVar[bool] = False
    summary: ClassVar[str] = "replay the life without the forgotten data (exact; the reference)"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.GLOBAL_MODELS, Capability.PEER_COOPERATION}
    )

    method: Literal["retrain"] = "retrain"
