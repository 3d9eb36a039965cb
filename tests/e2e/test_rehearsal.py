"""What a run will do is tried before it begins; what fails is said with its key, and nothing is written."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedsim.app.cli import app
from fedsim.training.objectives import LocalWork, Needs
from fedsim.training.sequential import SequentialExecutor
from fedsim.unlearning.methods.grad_ascent import GradAscent
from privacy.clipping import ClipStage
from tests.e2e.runs import BRIEF, merged, write_scenario
from tests.world import WORDS, save_base


def call(folder: Path, scenario: dict) -> Result:
    path = write_scenario(folder, scenario)
    return CliRunner().invoke(app, ["run", str(path), "--out", str(folder / "run")])


def refused(folder: Path, scenario: dict) -> str:
    result = call(folder, scenario)
    assert result.exit_code == 2, result.output
    assert not (folder / "run").exists()
    return result.stderr


def own_data(folder: Path, base: Path, **changes: object) -> dict:
    """Three clients with three records each over a small vocabulary."""
    folder.mkdir(exist_ok=True)
    lines = [
        {
            "client": f"c{client}",
            "question": f"{WORDS[client]} {WORDS[9 + number]}",
            "answer": WORDS[20 + client],
        }
        for client in range(3)
        for number in range(3)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {
        "model": {"base": str(base), "lora": None},
        "data": {"source": "jsonl", "path": str(data)},
        "federation": {**BRIEF["federation"], "weighting": "uniform"},
    }
    return merged(BRIEF | own, **changes)


def test_a_private_step_that_this_base_cannot_take(tmp_path: Path) -> None:
    """Records of two share the positions' gradient, which alone has no sample axis."""
    stage = {"stage": "example_dp", "noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 1.0}
    scenario = own_data(tmp_path, save_base(tmp_path / "gpt2", "gpt2"), privacy=[stage])
    said = refused(tmp_path, scenario)
    assert "privacy: a private step on 2 records fails on this base (" in said


def test_a_base_without_an_end_marker(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = base / name
        if file.exists():
            file.write_text(
                json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "eos_token"})
            )
    assert "model.base: " in (said := refused(tmp_path, own_data(tmp_path, base)))
    assert "has no end-of-sequence marker" in said


def test_a_record_longer_than_the_base_has_positions(tmp_path: Path) -> None:
    scenario = own_data(tmp_path, save_base(tmp_path / "base"))
    data = Path(scenario["data"]["path"])
    long = {"client": "c0", "question": " ".join(WORDS), "answer": "w1"}
    data.write_text(data.read_text() + json.dumps(long) + "\n")
    assert "model.max_tokens: records take up to 42 tokens" in refused(tmp_path, scenario)


def test_a_method_whose_loss_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradAscent, "local", lambda self, role, index: LocalWork(_Broken()))
    scenario = merged(BRIEF, compare=[{"method": "grad_ascent", "rounds": 1}])
    said = refused(tmp_path, scenario)
    assert (
        "compare[0]: a step of the target's loss fails on this base (RuntimeError: no such operator)" in said
    )


class _Broken:
    needs = Needs()

    def __call__(self, current: object, reference: object) -> None:
        raise RuntimeError("no such operator\nin 40 lines")


@pytest.mark.parametrize("hook", ["client", "server"])
def test_a_privacy_stage_that_fails(hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OverflowError("no room for 2048 entries")

    monkeypatch.setattr(ClipStage, hook, broken)
    said = refused(tmp_path, merged(BRIEF, privacy=[{"stage": "clip", "norm": 1.0}]))
    assert "privacy: a round of the privacy stages fails on this base (OverflowError: no room" in said
    assert call(tmp_path / "other", BRIEF).exit_code == 0  # it has no stage


def test_a_sum_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipStage, "server", lambda self, update, context: (update * float("nan"), {}))
    said = refused(tmp_path, merged(BRIEF, privacy=[{"stage": "clip", "norm": 1.0}]))
    assert "the combined update is not finite" in said


def test_a_bound_that_every_update_exceeds(tmp_path: Path) -> None:
    said = refused(tmp_path, merged(BRIEF, federation__max_update_norm=1e-6))
    assert "federation.max_update_norm: one step on two records moves the adapter by " in said
    assert call(tmp_path / "other", merged(BRIEF, federation__max_update_norm=1e3)).exit_code == 0


def test_a_life_in_which_nobody_is_drawn(tmp_path: Path) -> None:
    said = refused(tmp_path, merged(BRIEF, federation__participation=1e-12))
    assert "federation.participation: nobody is drawn in any of 2 rounds" in said


def test_a_probe_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("index 128 is out of range")

    monkeypatch.setattr("fedsim.model.predictor.CausalPredictor.generate", broken)
    said = refused(tmp_path, BRIEF)  # a few answers are written out whatever is generated for metrics
    assert "model: a probe of the longest and the shortest record fails on this base (IndexError:" in said
    quiet = merged(BRIEF, probes__shown=0)
    assert call(tmp_path / "other", quiet).exit_code == 0  # it generates nothing


def test_a_run_to_which_nobody_contributed_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = SequentialExecutor.train_clients

    def failing(self: SequentialExecutor, jobs: list) -> list:
        results = train(self, jobs)
        return [
            result if job.round == 0 else type(result)(**{**_fields(result), "error": "RuntimeError: no"})
            for job, result in zip(jobs, results, strict=True)
        ]

    monkeypatch.setattr(SequentialExecutor, "train_clients", failing)
    result = call(tmp_path, merged(BRIEF, execution__cohort=1))
    assert result.exit_code == 1
    assert "error: no client ever contributed" in result.stderr
    assert (tmp_path / "run" / "report.html").exists()


def _fields(result: object) -> dict:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", [1, 3])
def test_a_step_in_parts_is_rehearsed_in_parts(part: int, tmp_path: Path) -> None:
    """Two records are fewer than a part may have, and more than one of one."""
    changes = {"federation": {"local": {"batch_size": 3, "micro_batch": part}}}
    scenario = own_data(tmp_path / "own", save_base(tmp_path / "llama"), **changes)
    path = write_scenario(tmp_path, scenario | {"model": {"base": str(tmp_path / "llama")}})
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0, result.stderr
    assert "memory: base 0.0 GB" in result.output
