"""Whose records a retain term is about: in a life, and where there are none."""

from pathlib import Path

import pytest

from fedsim.app import runs
from fedsim.places import ScenarioError
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory
from tests.e2e.runs import BRIEF, adapter, merged, run, write_scenario

RECORDS = [
    {"join": {"clients": "0-2"}},
    {"train": {"rounds": 1}},
    {"forget": {"client": 1, "fraction": 0.5}},
    {"train": {"rounds": 1}},
    {"forget": {"client": 1, "fraction": 0.9}},
    {"train": {"rounds": 1}},
]
PUBLIC = {"source": "authors", "clients": 3, "holdout_authors": 2, "public_authors": 4}


def told(label: str, **settings: object) -> dict:
    return {"method": "grad_diff", "rounds": 1, "label": label, **settings}


def test_each_source_gives_a_model_of_its_own(tmp_path: Path) -> None:
    """What was asked to be forgotten first is no part of what is kept when the client asks again."""
    compare = [
        told("helped"),
        told("none", alpha=0),
        told("kept", retain_on="own"),
        told("open", retain_on="public"),
    ]
    done = run(tmp_path, merged(BRIEF, timeline=RECORDS, data=PUBLIC, compare=compare))
    models = {one["label"]: adapter(done, 3, one["label"]) for one in compare}
    assert len(set(models.values())) == len(models)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compare": [told("kept", retain_on="own")]},
            "its request 1 is for all of it; use retain_on: helpers",
        ),
        (
            {"compare": [told("open", retain_on="public")], "probes__max_public": 1000},
            "public records that no probe asks about, and there are none; add some, lower probes.max_public",
        ),
        (
            {
                "compare": [told("open", retain_on="public")],
                "data": PUBLIC,
                "federation__local": {"optimizer": "spsa", "lr": 1e-3},
            },
            "adds two gradients a step, and spsa takes none",
        ),
        (
            {
                "compare": [told("open", retain_on="public")],
                "data": PUBLIC,
                "federation__weighting": "uniform",
                "privacy": [
                    {"stage": "example_dp", "noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 1.0}
                ],
            },
            "cannot be had with example_dp: .*retain loss beside it; use retain_on: helpers",
        ),
    ],
)
def test_where_there_is_nothing_to_retain_on(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_scenario(tmp_path, merged(BRIEF, **changes))
    with pytest.raises((ScenarioError, ValueError), match=message):
        runs.prepare(load_scenario(path), RunDirectory(tmp_path / "run"))
