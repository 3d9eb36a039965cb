"""What `validate` says a run takes: trainings and steps counted by hand, times as words."""

from pathlib import Path

from fedsim.assembly import estimate
from fedsim.assembly.build import load_and_check, make_context
from fedsim.scenario.file import load_scenario
from tests.e2e.runs import merged, write_scenario

LIFE = {
    "name": "counted",
    "data": {
        "source": "authors",
        "clients": 4,
        "facts_per_author": 5,
        "holdout_authors": 2,
        "public_authors": 2,
    },
    "federation": {"participation": 1.0, "local": {"epochs": 2, "batch_size": 4}},
    "model": {"base": "tiny-authors"},
    "timeline": [
        {"join": {"clients": "0-3"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 3}},
    ],
    "compare": [],
}


def test_trainings_and_steps_are_counted_over_branches_and_seeds(tmp_path: Path) -> None:
    """Shared: 2 rounds of 4. Then keep 3 rounds of 4, leave 3 of 3, retrain 5 of 3: 8 + 12 + 9 + 15."""
    loaded = load_scenario(write_scenario(tmp_path, LIFE))
    context = make_context(load_and_check(loaded), loaded.variants[0], 1)
    once = estimate.effort_sentence(context, seeds=1)
    assert once.startswith("44 local trainings with 176 steps, about ")  # 5 records: 2 batches, 2 passes
    assert "by 8 timed steps of 4 clients" in once  # 2 passes of 4 clients over a batch
    assert "Memory so far: " in once
    assert estimate.effort_sentence(context, seeds=3).startswith("132 local trainings with 528 steps, ")


def test_a_base_that_takes_long_is_tried_with_less(tmp_path: Path, monkeypatch) -> None:
    """With no patience at all, one step of one client; what is counted stays the same."""
    monkeypatch.setattr(estimate, "PATIENCE", 0.0)
    loaded = load_scenario(write_scenario(tmp_path, LIFE))
    context = make_context(load_and_check(loaded), loaded.variants[0], 1)
    said = estimate.effort_sentence(context, seeds=1)
    assert said.startswith("44 local trainings with 176 steps, about ")
    assert "by 1 timed step of 1 client;" in said


def test_a_private_trial_stays_within_its_budget(tmp_path: Path) -> None:
    stage = {"stage": "example_dp", "clip_norm": 1.0, "target_epsilon": 8.0, "delta": 1e-3}
    loaded = load_scenario(
        write_scenario(tmp_path, merged(LIFE, privacy=[stage], federation__weighting="uniform"))
    )
    context = make_context(load_and_check(loaded), loaded.variants[0], 1)
    jobs = estimate._timed_trial(context)
    results = context.engine.runtime.executor.train_clients(jobs)
    assert [result.error for result in results] == [None] * 4
    assert all(job.rule is not None for job in jobs)
