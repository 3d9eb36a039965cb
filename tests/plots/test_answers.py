"""Quotations: who said what, in which order, and what counts as the right answer."""

from pathlib import Path

import pytest

from fedsim.storage.directory import RunDirectory
from plots.answers import UNTRAINED, all_quotations, quotations
from plots.data import RunData
from plots.report import write_report
from tests.plots.synthetic import Plan, build

SAYS = {"keep": "Ann was born in Rome.", "retrain": "ann was born in rome", "npo": ""}


def told(branch: str, round_: int, said: str, *, subject: str = "forget:1", record: str = "a", seed: int = 1):
    return {
        "variant": "base",
        "branch": branch,
        "seed": seed,
        "round": round_,
        "event": "",
        "subject": subject,
        "record": record,
        "question": f"Where was {record} born?",
        "right": "Ann was born in Rome.",
        "said": said,
    }


def run_of(path: Path, rows: list[dict]) -> RunData:
    build(path, Plan(seeds=(1,)))
    RunDirectory(path).write_rows("answers", rows)
    return RunData.load(path)


def test_rows_are_the_untouched_base_then_the_branches_at_the_end(tmp_path: Path) -> None:
    rows = [told("keep", 0, "Ann <b>who</b>?"), *(told(name, 30, said) for name, said in SAYS.items())]
    found = quotations(run_of(tmp_path, rows), "base", "forget:1")
    assert found is not None
    assert found.round == 30
    assert found.asked == (("Where was a born?", "Ann was born in Rome."),)
    said = {row.who: row.answers[0] for row in found.rows}
    assert next(iter(said)) == UNTRAINED
    assert said[UNTRAINED] == ("Ann <b>who</b>?", False)
    assert {text for text, _ in said.values()} == {"Ann <b>who</b>?", *SAYS.values(), "(nothing)"} - {""}
    assert [good for text, good in said.values()] == [False, *(good for _, good in list(said.values())[1:])]
    assert {text for text, good in said.values() if good} == {SAYS["keep"], SAYS["retrain"]}


def test_a_branch_that_was_not_asked_everything_is_left_out(tmp_path: Path) -> None:
    rows = [told("keep", 30, "x"), told("keep", 30, "y", record="b"), told("npo", 30, "z")]
    found = quotations(run_of(tmp_path, rows), "base", "forget:1")
    assert found is not None
    assert [[text for text, _ in row.answers] for row in found.rows] == [["x", "y"]]


def test_the_first_seed_speaks(tmp_path: Path) -> None:
    rows = [told("keep", 30, "second", seed=2), told("keep", 30, "first", seed=1)]
    found = quotations(run_of(tmp_path, rows), "base", "forget:1")
    assert found is not None
    assert (found.seed, found.rows[0].answers) == (1, (("first", False),))


def test_requests_come_first_then_public_knowledge(tmp_path: Path) -> None:
    subjects = ("world", "forget:2", "forget:1")
    titles = list(
        all_quotations(run_of(tmp_path, [told("keep", 30, "x", subject=s) for s in subjects]), "base")
    )
    assert [title.split(":")[0] for title in titles] == ["Request 1", "Request 2", "Public knowledge"]


@pytest.mark.parametrize("noted", [True, False])
def test_the_report_quotes_what_was_noted_and_escapes_it(tmp_path: Path, noted: bool) -> None:
    run_of(tmp_path, [told("keep", 30, "<script>alert(1)</script>")] if noted else [])
    page = write_report(tmp_path).read_text()
    assert ("In its own words" in page) == noted
    assert "<script>alert" not in page
    assert ("&lt;script&gt;alert" in page) == noted


def test_a_run_without_the_table_has_a_report(tmp_path: Path) -> None:
    build(tmp_path, Plan(seeds=(1,)))
    assert "In its own words" not in write_report(tmp_path).read_text()
