"""All stages by name: their configurations, one line on each, and how they become a pipeline.

`StageConfig` is a discriminated union on ``stage``, ready to be a field of a larger configuration.

>>> from pydantic import TypeAdapter
>>> configs = TypeAdapter(list[StageConfig]).validate_python([{"stage": "clip", "norm": 1.0}])
>>> build_pipeline(configs).l2_bound
1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from privacy.client_dp import ClientDpConfig, ClientDpStage
from privacy.clipping import AdaptiveClipStage, ClipConfig, ClipStage
from privacy.compression import CompressionConfig, CompressionStage
from privacy.contexts import Nominal
from privacy.distributed_dp import DistributedDpConfig, DistributedDpStage
from privacy.example_dp import ExampleDpConfig, ExampleDpStage
from privacy.local_dp import LocalDpConfig, LocalDpStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.stage import Stage
from privacy.units import Weighting

AnyConfig = (
    ExampleDpConfig
    | ClipConfig
    | CompressionConfig
    | ClientDpConfig
    | LocalDpConfig
    | DistributedDpConfig
    | SecureAggregationConfig
)
StageConfig = Annotated[AnyConfig, Field(discriminator="stage")]

CONFIGS: dict[str, type[AnyConfig]] = {
    "example_dp": ExampleDpConfig,
    "clip": ClipConfig,
    "compression": CompressionConfig,
    "client_dp": ClientDpConfig,
    "local_dp": LocalDpConfig,
    "distributed_dp": DistributedDpConfig,
    "secure_aggregation": SecureAggregationConfig,
}
"""Configuration classes by stage name, in the order in which stages may stand."""


def summaries() -> dict[str, str]:
    """One line on each stage, by name."""
    return {name: (config.__doc__ or "").strip().splitlines()[0] for name, config in CONFIGS.items()}


def build_stage(config: AnyConfig) -> Stage:
    """The stage that a configuration describes."""
    match config:
        case ExampleDpConfig():
            return ExampleDpStage(config)
        case ClipConfig():
            return ClipStage(config) if config.quantile is None else AdaptiveClipStage(config)
        case CompressionConfig():
            return CompressionStage(config)
        case ClientDpConfig():
            return ClientDpStage(config)
        case LocalDpConfig():
            return LocalDpStage(config)
        case DistributedDpConfig():
            return DistributedDpStage(config)
        case SecureAggregationConfig():
            return SecureAggregationStage(config)


def build_pipeline(
    configs: Sequence[AnyConfig],
    *,
    nominal: Nominal | None = None,
    weighting: Weighting = "uniform",
    public_counts: bool = False,
) -> Pipeline:
    """A checked pipeline; `PipelineError` says what does not fit. ``nominal`` holds the worst cases."""
    stages = [build_stage(config) for config in configs]
    return Pipeline(stages, nominal=nominal, weighting=weighting, public_counts=public_counts)
