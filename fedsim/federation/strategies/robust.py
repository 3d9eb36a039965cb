"""Robust aggregation: rules that look at the updates one by one, so that a few cannot move all.

They need what masks hide, each update, and enough of them to tell the odd ones from the others; how many is
checked here, since most of Flower's go on with any number. Weights count in Multi-Krum's mean alone, and
under ``weighting: examples`` they are what clients say they are.

Rounds with planned weights do not come here: a target that ascends beside helpers that descend is an odd one
by design, and a median would drop it.

>>> KrumConfig(num_malicious_nodes=1).too_few(4)
'krum with num_malicious_nodes=1 needs at least 5 updates; there are 4'
>>> KrumConfig(num_malicious_nodes=1).too_few(5) is None
True
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.config import Float, Int
from fedsim.federation.strategies.protocol import COMMON, StrategyConfig

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg


class FedMedianConfig(StrategyConfig):
    """The median of each coordinate (Yin et al., 2018, arXiv:1803.01498).

    Of one or two updates it is their mean, which tolerates nobody.
    """

    name: Literal["fedmedian"] = "fedmedian"
    summary: ClassVar[str] = "median of each coordinate (Yin et al., 2018)"
    one_by_one: ClassVar[bool] = True

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import FedMedian

        return FedMedian(**COMMON)


class FedTrimmedAvgConfig(StrategyConfig):
    """The mean of each coordinate without its extremes (Yin et al., 2018, arXiv:1803.01498)."""

    name: Literal["fedtrimmedavg"] = "fedtrimmedavg"
    summary: ClassVar[str] = "mean of each coordinate without its extremes (Yin et al., 2018)"
    one_by_one: ClassVar[bool] = True
    beta: Float = Field(default=0.2, ge=0, lt=0.5)
    """Share of updates to cut at each end of each coordinate; rounded down."""

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import FedTrimmedAvg

        return FedTrimmedAvg(**COMMON, beta=self.beta)

    def fewest(self) -> int:
        """As many that one is cut at each end, unless ``beta`` is 0."""
        least = math.ceil(1 / self.beta) if self.beta else 1
        return least if not self.beta or int(self.beta * least) else least + 1


class _Tolerant(StrategyConfig):
    """A rule that tolerates some malicious clients, f, in each cohort."""

    one_by_one: ClassVar[bool] = True
    num_malicious_nodes: Int = Field(default=1, ge=0, le=10_000)
    """Malicious clients tolerated per cohort, f; needs at least 2 f + 3 clients (Bulyan: 4 f + 3)."""

    def fewest(self) -> int:
        """2 f + 3."""
        return 2 * self.num_malicious_nodes + 3


class KrumConfig(_Tolerant):
    """The update nearest to its neighbours (Blanchard et al., 2017, arXiv:1703.02757)."""

    name: Literal["krum"] = "krum"
    summary: ClassVar[str] = "the update nearest to its neighbours (Blanchard et al., 2017)"

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import Krum

        return Krum(**COMMON, num_malicious_nodes=self.num_malicious_nodes)


class MultiKrumConfig(_Tolerant):
    """The mean of the updates nearest to their neighbours (Blanchard et al., 2017, arXiv:1703.02757)."""

    name: Literal["multikrum"] = "multikrum"
    summary: ClassVar[str] = "mean of the updates nearest to their neighbours (Blanchard et al., 2017)"
    num_nodes_to_select: Int = Field(default=3, ge=1, le=10_000)
    """Clients whose mean is taken; needs as many clients, and the malicious ones."""

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import MultiKrum

        return MultiKrum(**COMMON, **self.parameters())

    def fewest(self) -> int:
        """2 f + 3, and f more than are selected: else one of the f is among them."""
        return max(super().fewest(), self.num_nodes_to_select + self.num_malicious_nodes)


class BulyanConfig(_Tolerant):
    """A trimmed mean of Krum's choices (El Mhamdi et al., 2018, arXiv:1802.07927)."""

    name: Literal["bulyan"] = "bulyan"
    summary: ClassVar[str] = "trimmed mean of Krum's choices (El Mhamdi et al., 2018)"

    def make(self) -> FedAvg:
        from flwr.serverapp.strategy import Bulyan

        return Bulyan(**COMMON, num_malicious_nodes=self.num_malicious_nodes)

    def fewest(self) -> int:
        """4 f + 3."""
        return 4 * self.num_malicious_nodes + 3
