"""SISA (Bourtoule et al., 2021, arXiv:1912.03817) over shards of clients: a request touches one of them.

Clients are dealt to shards once and for all; each shard is a federation of its own, and users are answered
with the mean of the shards' probabilities. A shard that trained with what a request forgets is replayed
without it from its first round with them; the others stay as they are. So the method is exact, against its
own retraining, and what it costs is utility: a shard learns from few clients. Each shard draws its own
cohorts by the scenario's rule, so a fixed cohort is one a shard; a shard that has not trained has no say.
Deviation: records are not sliced within a shard; rounds are what is replayed. Known weakness: facts of one
shard are diluted by the others, which never saw them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedsim.rng import ordering
from fedsim.unlearning.protocol import MethodConfig, Promise
from privacy import Capability

if TYPE_CHECKING:
    from fedsim.model.adapter import AdapterModel
    from fedsim.model.predictor import Predictor


class Sisa(MethodConfig):
    """Train shards of clients apart and average their answers; replay the shard of whoever is forgotten."""

    promise: ClassVar[Promise] = "exact"
    title: ClassVar[str] = "SISA"
    summary: ClassVar[str] = "shards of clients trained apart; the shard of whoever is forgotten is replayed"
    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.GLOBAL_MODELS, Capability.PEER_COOPERATION}
    )

    method: Literal["sisa"] = "sisa"
    shards: int = Field(default=3, ge=2, le=64)
    """Parts into which the clients are dealt."""
    deal: int = 0
    """Seed of the deal; which shard a client is in depends on all clients of the data."""

    def parts(self, clients: Sequence[int]) -> tuple[frozenset[int], ...]:
        dealt = [clients[place] for place in ordering(self.deal, "sisa", ids=clients)]
        return tuple(frozenset(dealt[shard :: self.shards]) for shard in range(self.shards))

    def joined(self, parts: Sequence[Predictor], model: AdapterModel) -> Predictor:
        from fedsim.model.ensemble import Averaged

        return Averaged.of(parts, model)
