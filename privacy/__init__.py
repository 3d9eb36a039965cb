"""A pluggable privacy layer for federated learning: stages, pipeline, ledger. A leaf package."""

from privacy.accounting import VACUOUS, Neighbours
from privacy.clipping import l2_norm
from privacy.composition import check_charges
from privacy.contexts import ClientContext, Draw, Metric, Nominal, RoundContext
from privacy.dp_sgd import DenseGradients, sample_norms
from privacy.errors import ClientUpdateError, LedgerError, RoundAborted, SumUnusable, ViewError
from privacy.example_dp import ExampleDpRule
from privacy.groups import group_epsilon
from privacy.ledger import Ledger, Release
from privacy.local import LocalRule, LocalSession, LocalTask, SampleGradients
from privacy.parties import ClientParty, RoundResult, ServerRound
from privacy.pipeline import Pipeline
from privacy.registry import StageConfig, build_pipeline, summaries
from privacy.stage import Facts, Reveals
from privacy.transport import Contribution, Payload, Update
from privacy.units import Unit
from privacy.views import Capability, View, honest_server, require, require_individuals, views

__all__ = [
    "VACUOUS",
    "Capability",
    "ClientContext",
    "ClientParty",
    "ClientUpdateError",
    "Contribution",
    "DenseGradients",
    "Draw",
    "ExampleDpRule",
    "Facts",
    "Ledger",
    "LedgerError",
    "LocalRule",
    "LocalSession",
    "LocalTask",
    "Metric",
    "Neighbours",
    "Nominal",
    "Payload",
    "Pipeline",
    "Release",
    "Reveals",
    "RoundAborted",
    "RoundContext",
    "RoundResult",
    "SampleGradients",
    "ServerRound",
    "StageConfig",
    "SumUnusable",
    "Unit",
    "Update",
    "View",
    "ViewError",
    "build_pipeline",
    "check_charges",
    "group_epsilon",
    "honest_server",
    "l2_norm",
    "require",
    "require_individuals",
    "sample_norms",
    "summaries",
    "views",
]
