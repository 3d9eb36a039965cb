"""fedsim from Python: the same run as from the command line, and what can be asked of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedsim
from tests.e2e.runs import BRIEF, merged, write_scenario

EVENTS = merged(
    BRIEF,
    timeline=[
        {"join": {"clients": "all"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 2}},
    ],
    compare=[{"method": "npo", "rounds": 1}, "keyword_filter"],
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> fedsim.Run:
    folder = tmp_path_factory.mktemp("face")
    return fedsim.run(write_scenario(folder, EVENTS), out=folder / "run")


def test_a_scenario_is_read_with_other_values(tmp_path: Path) -> None:
    loaded = fedsim.load(write_scenario(tmp_path, EVENTS), {"federation.local.lr": 0.25, "seeds": [4, 5]})
    assert loaded.scenario.federation.local.lr == 0.25
    assert loaded.scenario.seeds == (4, 5)
    assert fedsim.load(write_scenario(tmp_path, EVENTS), ["seeds=[7]"]).scenario.seeds == (7,)
    with pytest.raises(fedsim.ScenarioError, match="did you mean 'lr'"):
        fedsim.load(write_scenario(tmp_path, EVENTS), {"federation.local.learning_rate": 1.0})


def test_a_run_gives_its_verdict_tables_figures_and_report(finished: fedsim.Run) -> None:
    assert {row["branch"] for row in finished.verdict["rows"]} >= {"keep", "npo", "keyword_filter"}
    assert finished.table("metrics").num_rows > 0
    assert finished.figure("timeline").axes
    assert finished.report.exists()
    assert repr(finished) == f"Run({str(finished.path)!r})"


def test_it_opens_again_as_it_was(finished: fedsim.Run) -> None:
    again = fedsim.open(finished.path)
    assert again.verdict == finished.verdict
    assert fedsim.run(finished.path.parent / "scenario.yaml", out=finished.path).verdict == finished.verdict


def test_adapters_are_those_at_the_branchs_end(finished: fedsim.Run) -> None:
    keep, npo = finished.adapter("keep"), finished.adapter("npo")
    assert keep.keys() == npo.keys()
    assert any(not np.array_equal(keep[name], npo[name]) for name in keep)
    leave, guarded = finished.adapter("leave"), finished.adapter("keyword_filter")
    assert all(np.array_equal(leave[name], guarded[name]) for name in leave)
    assert "retrain-1" in str(finished.adapter_directory("retrain"))


def test_a_predictor_answers_as_the_branchs_users_are_answered(finished: fedsim.Run) -> None:
    answers = {}
    for branch in ("leave", "keyword_filter"):
        predictor, tokenizer = finished.predictor(branch)
        prompt = tokenizer("What is the genre of Moru Viti?", add_special_tokens=True)["input_ids"]
        answers[branch] = predictor.generate([prompt], 8)[0]
    assert answers["leave"] != []
    forgotten = next(r for r in finished.table("items").to_pylist() if r["subject"] == "forget:1")
    assert forgotten["record"]


def test_it_shows_itself_in_a_notebook(finished: fedsim.Run) -> None:
    shown = finished._repr_html_()
    table = shown[shown.index("<table>") : shown.index("</table>")]
    rows = table.split("<tr>")[1:]
    assert rows[0].count("<th>") == rows[1].count("<td>") == rows[-1].count("<td>")
    assert "Keyword filter" in shown
    assert "data:image/png;base64," in shown


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda run: run.table("metric"), "choices: metrics, items"),
        (lambda run: run.figure("time"), "choices: timeline"),
        (lambda run: run.figure("epsilon"), "this run has no data for it"),
        (lambda run: run.adapter("nop"), "choices: keep"),
        (lambda run: run.adapter("npo", seed=9), "seed=9 is not in this run; choices: 1"),
        (lambda run: run.figure(variant="x"), "variant='x' is not in this run; choices: base"),
        (lambda run: fedsim.open(run.path / "nowhere"), "no finished run here"),
    ],
)
def test_what_is_not_there_is_one_message_with_the_choices(finished: fedsim.Run, ask, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(finished)


def test_importing_it_brings_no_library() -> None:
    code = (
        "import sys, fedsim; sys.exit(bool({'torch', 'pydantic', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_it_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        fedsim.lod  # noqa: B018
