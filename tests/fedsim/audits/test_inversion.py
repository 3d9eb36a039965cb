"""What cannot be attacked is said before the life begins, at the key that asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.assembly.build import load_and_check
from fedsim.audits.inversion import in_place_of
from fedsim.audits.kinds.gradient_inversion import OWN, InversionAudit
from fedsim.data.names import ClientNames
from fedsim.scenario.file import ScenarioError, load_scenario
from privacy import Draw, Nominal, build_pipeline
from tests.e2e.runs import BRIEF, merged, write_scenario

CLIP = {"stage": "clip", "norm": 1.0}
NOISE = {"noise_multiplier": 1.0, "delta": 1e-5}
MASKS = {"stage": "secure_aggregation"}
TARGET = {"target_epsilon": 8.0, "delta": 1e-5}


def checked(folder: Path, under: dict[str, Any], **changes: Any) -> None:
    audit = {"audit": "gradient_inversion", "clients": 0, "under": under}
    scenario = merged(BRIEF, federation__weighting="uniform", audits=[audit], **changes)
    load_and_check(load_scenario(write_scenario(folder, scenario)))


def refused(folder: Path, under: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ScenarioError) as caught:
        checked(folder, under, **changes)
    return str(caught.value).removeprefix(f"{folder / 'scenario.yaml'}:1: ")


def test_pipelines_that_fit_are_built_before_the_life(tmp_path: Path) -> None:
    fitting = {
        "none": [],
        "records": [{"stage": "example_dp", "clip_norm": 1.0, **TARGET}],
        "noise": [CLIP, {"stage": "client_dp", **TARGET}],
        "shares": [CLIP, {"stage": "distributed_dp", "min_survivors": 3, **NOISE}, MASKS],
    }
    checked(tmp_path, fitting)


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        (
            [MASKS],
            "secure_aggregation cannot rule out overflow of updates that nothing bounds; put clip before",
        ),
        ([{"stage": "local_dp", **NOISE}], "local_dp cannot size noise for updates that nothing bounds"),
        ([MASKS, CLIP], "clip after secure_aggregation"),
        (
            [CLIP, MASKS | {"min_cohort": 4}],
            "a sum needs min_cohort=4 contributors, and there are max_cohort=3",
        ),
        (
            [CLIP, {"stage": "distributed_dp", "min_survivors": 4, **NOISE}, MASKS],
            "a sum needs min_cohort=4 contributors",
        ),
    ],
    ids=["unbounded", "no sensitivity", "order", "cohort", "survivors"],
)
def test_a_pipeline_that_does_not_fit_is_refused_at_its_name(
    tmp_path: Path, stages: list[Any], reason: str
) -> None:
    assert refused(tmp_path, {"good": [CLIP], "bad one": stages}).startswith(
        f"audits[0].under.bad one: {reason}"
    )


def test_clients_that_hold_nothing_are_nobody_to_hide_among(tmp_path: Path) -> None:
    """Of ten clients few hold everything: masks that need ten would never be taken off."""
    skewed = {"source": "authors", "clients": 10, "partition": "dirichlet", "dirichlet_alpha": 0.01}
    changes = {
        "data": skewed | {"holdout_authors": 2, "public_authors": 2},
        "timeline": [{"join": {"clients": 0}}, {"train": {"rounds": 1}}],
    }
    told = refused(tmp_path, {"masks": [CLIP, MASKS | {"min_cohort": 10}]}, **changes)
    assert told.startswith(
        "audits[0].under.masks: a sum needs min_cohort=10 contributors, and there are max_"
    )


def test_a_model_that_cannot_be_attacked_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, {}, model__lora=None).startswith("audits[0]: base='tiny-authors' has LoRA on")
    dora = {"r": 4, "peft": {"use_dora": True}}
    records = {"records": [{"stage": "example_dp", "clip_norm": 1.0, **NOISE}]}
    checked(tmp_path, {"none": []}, model__lora=dora)
    assert refused(tmp_path, records, model__lora=dora).startswith(
        "audits[0].under.records: example_dp cannot take per-sample gradients of this model"
    )


def test_the_name_of_the_runs_own_pipeline_is_taken(tmp_path: Path) -> None:
    assert refused(tmp_path, {OWN: []}) == (
        "audits[0].under.this run: 'this run' is the run's own pipeline, which is always attacked; choose "
        "another name"
    )


def test_another_pipeline_is_sized_for_the_same_life() -> None:
    draws = (Draw(kind="poisson", rate=0.5, population=8),)
    nominal = Nominal(max_cohort=8, max_weight=9.0, dimension=10, session="s", rounds=7, draws=draws)
    own = build_pipeline([], nominal=nominal, weighting="examples")
    other = in_place_of(own, [])
    assert (other.nominal.max_cohort, other.nominal.rounds, other.nominal.draws) == (8, 7, draws)
    assert (other.weighting, other.nominal.max_weight) == ("uniform", 1.0)


def test_the_first_who_hold_records_are_attacked_where_nobody_is_named() -> None:
    """Data may know no client 0, and a client may hold nothing."""
    names = ClientNames.of(["4", "7", "9", "11"])
    nobody = InversionAudit(audit="gradient_inversion")
    assert nobody.victims(names, [4, 9, 11]) == (4, 9, 11)
    assert nobody.victims(names, [9]) == (9,)
    named = InversionAudit(audit="gradient_inversion", clients="7,9")
    assert named.victims(names, [4, 7, 9, 11]) == (7, 9)
