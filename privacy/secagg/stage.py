"""Secure aggregation: the server adds up integers of which it can read only the sum.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (2017), on the sparse
graph of Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (2020). Each client
encodes its contribution in fixed point modulo 2^32 and adds two kinds of masks: one per neighbour, which the
neighbour subtracts, and one of its own. What makes up the masks is shared out among the neighbours, so that
the server can take off the masks of those who reported and of those who dropped out, but of nobody both.

====  ======================  =====================================================================
step  client                  server
====  ======================  =====================================================================
1     `advertise`: two keys   `collect`: the roster of everybody's keys, broadcast
2     `share`: sealed shares  `deliver`: to each client the shares it holds; who shared is in
3     `seal`: masked vector   `receive`: adds; asks survivors about those who reported and who did not
4     `unmask`: shares        `total`: takes the masks off, checks, decodes
====  ======================  =====================================================================

A client may drop out before or after any step. A message that is malformed is as good as none: its client
drops out, and is named in ``rejected``. With too few left the round aborts; nothing is learned from it.

>>> from privacy.contexts import Nominal
>>> from privacy.stage import Wire
>>> stage = SecureAggregationStage(SecureAggregationConfig())
>>> wire = Wire(kind="float", l2_bound=1.0)
>>> stage.channel(wire, Nominal(max_cohort=20, max_weight=1.0)).interactive
True
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from privacy.config import Config
from privacy.contexts import ClientContext, Nominal, RoundContext
from privacy.errors import OverflowRiskError, PipelineError
from privacy.secagg.client import SecAggClient
from privacy.secagg.layout import Layout, Terms
from privacy.secagg.masks import KEY_BYTES
from privacy.secagg.server import SecAggServer
from privacy.stage import Facts, Stage, Wire
from privacy.transport import Channel, ClientChannel, ServerChannel


def _even(neighbours: int) -> int:
    """As many on one side of the ring as on the other."""
    if neighbours % 2:
        raise ValueError(
            f"neighbours={neighbours} must be even: half of them stand on each side of a client; the nearest "
            f"are {neighbours - 1} and {neighbours + 1}"
        )
    return neighbours


_Even = Annotated[int, Field(ge=2, json_schema_extra={"multipleOf": 2}), AfterValidator(_even)]


class SecureAggregationConfig(Config):
    """Masks updates so that the server learns only their sum."""

    stage: Literal["secure_aggregation"] = "secure_aggregation"
    threshold: float = Field(
        default=0.6,
        gt=0.5,
        le=1.0,
        description="share of a client and its neighbours who must stay to the end, lest the round aborts",
    )
    min_cohort: int = Field(default=2, ge=2, description="fewest contributors of which a sum is formed")
    neighbours: _Even | None = Field(
        default=None,
        description="clients with whom each shares masks; all when left out. A client whose neighbours all "
        "collude with the server is unmasked",
    )


class SecureAggregationStage(Stage):
    """Takes a bounded float wire, gives integers modulo 2^32, reveals the sum."""

    def __init__(self, config: SecureAggregationConfig) -> None:
        self.config = config

    @property
    def facts(self) -> Facts:
        return Facts(name="secure_aggregation", place="channel", takes=("float", "grid"), reveals="sum")

    def wire(self, incoming: Wire, nominal: Nominal) -> Wire:
        Layout.plan(incoming, nominal)
        if incoming.codec is not None and incoming.codec.data_dependent:
            raise PipelineError(
                "compression before secure_aggregation: which coordinates are sent depends on the data, and "
                "the masked vector is as long as before; take compression out, or quantise behind a clip"
            )
        return replace(incoming, kind="modular", codec=None)

    def channel(self, incoming: Wire, nominal: Nominal) -> Channel:
        layout = Layout.plan(incoming, nominal)
        least = max(self.config.min_cohort, nominal.min_cohort, incoming.min_cohort)
        if layout.max_cohort < least:
            raise PipelineError(
                f"a sum needs min_cohort={least} contributors, and there are max_cohort={layout.max_cohort} "
                "clients; lower min_cohort (or min_survivors)"
            )
        if self.config.neighbours is not None:
            self._check_graph(self.config.neighbours)
        terms = Terms(
            layout=layout,
            min_cohort=least,
            threshold=self.config.threshold,
            dimension=incoming.dimension,
            neighbours=self.config.neighbours,
        )
        return MaskedChannel(terms=terms)

    def _check_graph(self, neighbours: int) -> None:
        """Check that survivors hang together.

        Whoever has lost one side of the ring has half its neighbours left, and must not be unmasked then,
        or the sum would fall apart into sums of a few.
        """
        holders = neighbours + 1
        needed = Terms.needed(self.config.threshold, holders)
        if needed <= neighbours // 2 + 1:
            raise PipelineError(
                f"threshold={self.config.threshold} with neighbours={neighbours} lets dropouts cut the ring, "
                f"and the sum falls apart; set threshold above {(neighbours // 2 + 1) / holders:.3g}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedChannel:
    """Makes the two ends."""

    terms: Terms

    @property
    def interactive(self) -> bool:
        return True

    @property
    def min_cohort(self) -> int:
        return self.terms.min_cohort

    @property
    def bearable_colluders(self) -> int:
        """One less than the shares that unmask a client in the smallest cohort."""
        terms = self.terms
        others = terms.min_cohort - 1
        holders = 1 + (others if terms.neighbours is None else min(terms.neighbours, others))
        return terms.shares_needed(holders) - 1

    def client(self, context: ClientContext) -> ClientChannel:
        if context.memory:
            return SecAggClient.restored(self.terms, context)
        secret = context.secret if context.secret is not None else os.urandom(KEY_BYTES)
        return SecAggClient(terms=self.terms, context=context, secret=secret)

    def server(self, context: RoundContext) -> ServerChannel:
        if len(context.cohort) > self.terms.layout.max_cohort:
            raise OverflowRiskError(
                f"cohort of {len(context.cohort)} exceeds max_cohort={self.terms.layout.max_cohort}: overflow"
            )
        return SecAggServer(terms=self.terms, context=context)
