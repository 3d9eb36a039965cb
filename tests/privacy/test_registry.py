import pytest
from pydantic import TypeAdapter, ValidationError

from privacy.contexts import Nominal
from privacy.errors import PipelineError
from privacy.registry import CONFIGS, StageConfig, build_pipeline, summaries

ADAPTER = TypeAdapter(list[StageConfig])
FULL = [
    {"stage": "example_dp", "target_epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0},
    {"stage": "clip", "norm": 1.0},
    {"stage": "client_dp", "noise_multiplier": 1.0, "delta": 1e-5},
    {"stage": "distributed_dp", "noise_multiplier": 1.0, "delta": 1e-5, "min_survivors": 3},
    {"stage": "secure_aggregation"},
]


def test_full_list_becomes_a_pipeline():
    configs = ADAPTER.validate_python(FULL)
    pipeline = build_pipeline(configs, nominal=Nominal(max_cohort=24, dimension=10))
    left_out = ("compression", "local_dp")
    assert [fact.name for fact in pipeline.facts] == [name for name in CONFIGS if name not in left_out]
    assert ADAPTER.validate_python(ADAPTER.dump_python(configs)) == configs
    with pytest.raises(PipelineError):
        build_pipeline(configs[::-1], nominal=Nominal(max_cohort=24))


def test_no_stage_is_a_plain_mean():
    assert build_pipeline([]).reveals == "individual"


def test_each_stage_has_one_line():
    lines = summaries()
    assert list(lines) == list(CONFIGS)
    assert all(line.endswith(".") and len(line) < 100 for line in lines.values())
    assert all(config.model_fields["stage"].default == name for name, config in CONFIGS.items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "clip"},
        {"stage": "clip", "norm": 0},
        {"stage": "clip", "norm": float("nan")},
        {"stage": "clip", "norm": 1.0, "extra": 1},
        {"stage": "nothing"},
        {"stage": "secure_aggregation", "min_cohort": 1},
        {"stage": "secure_aggregation", "threshold": 0.4},
        {"stage": "example_dp", "delta": 1e-5, "clip_norm": 1.0},
        {"stage": "example_dp", "delta": 1e-5, "clip_norm": 1.0, "noise_multiplier": 1, "target_epsilon": 1},
        {"stage": "example_dp", "delta": 0, "clip_norm": 1.0, "noise_multiplier": 1},
        {
            "stage": "example_dp",
            "delta": 1e-5,
            "clip_norm": 1.0,
            "noise_multiplier": 1,
            "batch_size": 2,
            "sample_rate": 0.1,
        },
    ],
)
def test_bad_configurations(wrong):
    with pytest.raises(ValidationError):
        ADAPTER.validate_python([wrong])
