"""What every stage's configuration takes: numbers as written, and nothing in their stead."""

import pytest
from pydantic import TypeAdapter, ValidationError

from privacy.accounting import LEAST_NOISE, MOST_NOISE
from privacy.config import Config
from privacy.registry import CONFIGS, StageConfig

ADAPTER = TypeAdapter(StageConfig)
NOISE = {"noise_multiplier": 1.0, "delta": 1e-5}
WRITTEN = {
    "example_dp": {**NOISE, "clip_norm": 1.0, "batch_size": 4},
    "clip": {"norm": 1.0},
    "compression": {"method": "quantise", "bits": 4},
    "client_dp": {**NOISE, "expected_cohort": 4.0},
    "local_dp": NOISE,
    "distributed_dp": {**NOISE, "min_survivors": 3},
    "secure_aggregation": {"threshold": 0.8, "min_cohort": 5, "neighbours": 4},
}
NUMBERS = [
    (stage, key) for stage, keys in WRITTEN.items() for key, value in keys.items() if value != "quantise"
]


def read(stage, **changes):
    return ADAPTER.validate_python({"stage": stage, **WRITTEN[stage], **changes})


def test_every_stage_shares_the_base():
    assert set(WRITTEN) == set(CONFIGS)
    assert all(issubclass(config, Config) for config in CONFIGS.values())


@pytest.mark.parametrize(("stage", "key"), NUMBERS, ids=lambda part: part)
def test_a_number_is_neither_text_nor_a_truth_value(stage, key):
    read(stage)
    for wrong in (True, str(WRITTEN[stage][key]), float("nan"), float("inf")):
        with pytest.raises(ValidationError, match=key):
            read(stage, **{key: wrong})


def test_a_whole_number_may_stand_for_any_and_not_the_other_way_round():
    assert read("clip", norm=1) == read("clip", norm=1.0)
    assert read("local_dp", noise_multiplier=2).noise_multiplier == 2.0
    with pytest.raises(ValidationError, match="min_cohort"):
        read("secure_aggregation", min_cohort=5.0)


def test_json_reads_back_the_same():
    for stage in WRITTEN:
        assert ADAPTER.validate_json(read(stage).model_dump_json()) == read(stage)


@pytest.mark.parametrize("stage", ["example_dp", "client_dp", "local_dp", "distributed_dp"])
def test_noise_that_cannot_be_accounted_is_refused(stage):
    for noise in (LEAST_NOISE, MOST_NOISE):
        assert read(stage, noise_multiplier=noise).noise_multiplier == noise
    for noise in (0.0, 1e-200, LEAST_NOISE / 2, MOST_NOISE * 2):
        with pytest.raises(ValidationError, match="noise_multiplier"):
            read(stage, noise_multiplier=noise)


def test_neighbours_stand_on_both_sides():
    assert read("secure_aggregation", neighbours=6).neighbours == 6
    assert read("secure_aggregation", neighbours=None).neighbours is None
    with pytest.raises(ValidationError, match=r"neighbours=3 must be even: .* the nearest are 2 and 4"):
        read("secure_aggregation", neighbours=3)
