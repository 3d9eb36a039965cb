"""The command line: what it says, where it says it, and that a bad input changes nothing."""

# ruff: noqa: E501  (messages as the user sees them)

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedsim.app.cli import app
from fedsim.scenario.file import json_schema

QUICK = """\
name: small
data: {source: authors, clients: 4}
timeline:
  - join: {clients: 0-3}
  - train: {rounds: 2}
  - forget: {client: 1}
  - train: {rounds: 3}
compare: [grad_diff]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with one good scenario."""
    monkeypatch.chdir(tmp_path)
    # An unreachable hub must neither be asked nor leave its mark on other tests.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "s.yaml").write_text(QUICK)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, *arguments: str) -> str:
    """The one message of a call that must end with code 2 and change nothing."""
    before = contents(folder)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert contents(folder) == before
    return result.stderr.removeprefix("error: ").rstrip("\n")


# --------------------------------------------------------------------------------- good input


def test_validate_says_what_would_run(folder: Path) -> None:
    result = call("validate", "s.yaml")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    first, *rest = result.stdout.splitlines()
    assert first.startswith("s.yaml: small [base] is valid: 5 rounds, 1 forget request, ")
    assert [line.strip() for line in rest[:2]] == ["0  clients 0-3 join", "2  client 1 asks to be forgotten"]
    assert list(contents(folder)) == ["s.yaml"]


def test_list_names_everything_on_a_line_each(folder: Path) -> None:
    (folder / "scenarios").mkdir()
    (folder / "scenarios" / "mine.yaml").write_text(QUICK + "description: Mine.\n")
    (folder / "scenarios" / "bad.yaml").write_text("name: bad\n")
    result = call("list")
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("  ")]
    said = {line[0]: line[1] if len(line) > 1 else "" for line in lines}
    assert said["scenarios/mine.yaml"] == "Mine."
    assert said["scenarios/bad.yaml"].startswith("(not valid: scenarios/bad.yaml: timeline:")
    expected = (
        "retrain grad_ascent grad_diff npo simnpo example_dp clip secure_aggregation fedavg fedyogi krum"
    )
    assert set(expected.split()) | {"fact_probability", "authors", "tofu", "jsonl"} <= set(said)
    assert all(said.values())
    assert not any(line != line.rstrip() for line in result.stdout.splitlines())


def test_schema_is_printed_or_written(folder: Path) -> None:
    assert json.loads(call("schema").stdout) == json_schema()
    assert call("schema", "--out", "schema.json").exit_code == 0
    assert json.loads((folder / "schema.json").read_text()) == json_schema()


# ---------------------------------------------------------------------------------- bad input


SETTINGS = {
    "privcy=[]": "--set privcy=[]: unknown key 'privcy'; did you mean 'privacy'?",
    "federation.local.lr=fast": "--set federation.local.lr=fast: found 'fast'; must be a number above 0",
    "compare=[grad_dif]": "--set compare=[grad_dif]: compare[0]: unknown method 'grad_dif'; did you mean 'grad_diff'?",
    "timeline.2.forget.client=9": "--set timeline.2.forget.client=9: client 9 is not in the data, which has clients 0-3",
    "compare=[{method: npo, rounds: 9}]": "s.yaml:6: timeline[2].forget: npo takes 9 rounds for this request",
    "execution.device=gpu": "--set execution.device=gpu: device='gpu' is not a device here; use auto, cpu, cuda or cuda:0",
    "model.base=somewhere/else": "--set model.base=somewhere/else: base='somewhere/else' is no folder here, and as a name on the hub it cannot be loaded as a causal language model",
    "model.base=./here/base": "--set model.base=./here/base: base='./here/base' is no folder here; give an embedded model",
    "model.lora.rank=4": "--set model.lora.rank=4: unknown key 'rank'; did you mean 'r'?",
    "federation.local.learning_rate=4": "--set federation.local.learning_rate=4: unknown key 'learning_rate'; did you mean 'lr'?",
    "data={source: tofu, path: nowhere}": "--set data={source: tofu, path: nowhere}: nowhere: no such folder; it must hold TOFU's full.json",
    "data={source: jsonl, path: nowhere.jsonl}": "--set data={source: jsonl, path: nowhere.jsonl}: nowhere.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_bad_setting_is_one_message(folder: Path, setting: str) -> None:
    assert refused(folder, "run", "s.yaml", "--set", setting).startswith(SETTINGS[setting])


def test_stages_in_an_order_that_makes_no_sense(folder: Path) -> None:
    (folder / "s.yaml").write_text(
        QUICK + "privacy:\n  - {stage: secure_aggregation}\n  - {stage: clip, norm: 1}\n"
    )
    message = refused(folder, "validate", "s.yaml")
    assert "clip" in message
    assert "secure_aggregation" in message


ONE_BY_ONE = {
    "[{stage: clip, norm: 1}, {stage: secure_aggregation}]": "'fedmedian' needs ['individual_updates'], which "
    "secure_aggregation hides: the server sees the sum of updates",
    "[{stage: clip, norm: 1}, {stage: client_dp, noise_multiplier: 1, delta: 1.0e-5}]": "'fedmedian' combines "
    "updates one by one, but client_dp adds its noise to their sum. Take client_dp out, or choose a method that "
    "needs only the sum",
    "[{stage: clip, norm: 1, quantile: 0.5}]": "'fedmedian' combines updates one by one, but clip with a quantile "
    "reads the next norm off their sum (one without does not). Take clip out, or choose a method that needs only "
    "the sum",
}


@pytest.mark.parametrize("privacy", ONE_BY_ONE)
def test_a_robust_strategy_needs_each_update(folder: Path, privacy: str) -> None:
    strategy = "federation:\n  weighting: uniform\n  strategy: fedmedian\n"
    (folder / "s.yaml").write_text(QUICK + strategy + f"privacy: {privacy}\n")
    message = refused(folder, "validate", "s.yaml")
    assert message.startswith(f"s.yaml:11: federation.strategy: {ONE_BY_ONE[privacy]}")


def test_a_robust_strategy_needs_enough_clients(folder: Path) -> None:
    """Four clients are there."""
    assert refused(folder, "validate", "s.yaml", "--set", "federation.strategy=bulyan") == (
        "--set federation.strategy=bulyan: bulyan with num_malicious_nodes=1 needs at least 7 updates; "
        "there are 4 in the largest cohort; set its parameters for fewer, or let more take part"
    )
    settings = [
        "federation.strategy={name: krum, num_malicious_nodes: 0}",
        "federation.participation={cohort: 2}",
    ]
    assert "there are 2 in the largest" in refused(
        folder, "validate", "s.yaml", "--set", settings[0], "--set", settings[1]
    )
    assert call("validate", "s.yaml", "--set", settings[0]).exit_code == 0


def test_a_malformed_line_of_data_is_named(folder: Path) -> None:
    (folder / "mine.jsonl").write_text('{"client": "a", "question": "q", "answer": "a"}\n{"client": \n')
    message = refused(folder, "validate", "s.yaml", "--set", "data={source: jsonl, path: mine.jsonl}")
    assert ": mine.jsonl:2: not JSON" in message


def test_a_folder_beside_the_one_that_is_named_is_told(folder: Path) -> None:
    (folder / "bases" / "llama-tiny").mkdir(parents=True)
    message = refused(folder, "validate", "s.yaml", "--set", "model.base=./bases/llama_tiny")
    assert "base='./bases/llama_tiny' is no folder here (nearest: bases/llama-tiny); give" in message


def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    out = "/proc/nowhere"
    assert refused(folder, "run", "s.yaml", "--out", out).startswith(f"{out}: cannot be written (")


def test_a_folder_that_is_no_model_is_named(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    message = refused(folder, "validate", "s.yaml", "--set", "model.base=base")
    assert message.startswith(
        "--set model.base=base: base='base' cannot be loaded as a causal language model"
    )


def test_several_faults_are_a_line_each(folder: Path) -> None:
    (folder / "s.yaml").write_text(QUICK + "seeds: [x]\nprobes: {every: 0}\n")
    result = call("validate", "s.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: s.yaml:9: seeds[0]: found 'x'; must be a whole number from 0 to 2147483647\n"
        "s.yaml:10: probes.every: found 0; must be a whole number of at least 1\n"
    )


def test_a_missing_scenario(folder: Path) -> None:
    assert refused(folder, "run", "t.yaml") == "t.yaml: no such file; did you mean s.yaml?"


# ---------------------------------------------------------------------------- run directories


def test_another_run_is_not_overwritten(folder: Path) -> None:
    (folder / "runs" / "small").mkdir(parents=True)
    (folder / "runs" / "small" / "scenario.yaml").write_text("name: other\n")
    message = refused(folder, "run", "s.yaml")
    assert message.startswith(
        "runs/small: holds a run of another scenario or other settings; nothing was changed"
    )


def test_a_folder_of_something_else_is_not_used(folder: Path) -> None:
    (folder / "papers").mkdir()
    (folder / "papers" / "thesis.tex").write_text("important")
    message = refused(folder, "run", "s.yaml", "--out", "papers")
    assert message.startswith("papers: exists and is not a run directory; nothing was changed")


def test_a_file_is_not_a_run_directory(folder: Path) -> None:
    (folder / "taken").write_text("important")
    expected = "taken: is a file; give --out a directory that may be written"
    assert refused(folder, "run", "s.yaml", "--out", "taken") == expected
    assert refused(folder, "run", "s.yaml", "--out", "taken/deep").startswith("taken")


@pytest.mark.parametrize("name", ["empty", "none"])
def test_there_is_nothing_to_resume_or_report(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    assert refused(folder, "resume", name).startswith(f"{name}: no run here (scenario.yaml is missing)")
    assert refused(folder, "report", name).startswith(
        f"{name}: no finished run here (verdict.json is missing)"
    )


def test_a_fault_inside_a_run_is_not_blamed_on_the_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what happens before training is an input error; a bug must show its traceback."""

    def broken(*_: object) -> None:
        raise ValueError("shapes differ")

    monkeypatch.setattr("fedsim.app.runs.execute", broken)
    result = call("run", "s.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert "error:" not in result.stderr
    assert (folder / "runs" / "small" / "scenario.yaml").exists()


# ------------------------------------------------------------------------------------ offline


def test_an_unreachable_hub_is_noticed_at_once(tmp_path: Path) -> None:
    """In a process of its own: libraries read the setting when they are imported."""
    (tmp_path / "s.yaml").write_text(QUICK)
    proxies = {"http_proxy", "https_proxy", "all_proxy", "hf_hub_offline"}
    environment = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    # A port that nobody listens on stands for a network without the hub.
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    code = "from fedsim.app.cli import main; main()"
    arguments = ["validate", "s.yaml", "--set", "model.base=someone/some-model"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "as a name on the hub it cannot be loaded" in done.stderr
    assert done.stderr.count("\n") == 1  # each retry would add lines of its own
