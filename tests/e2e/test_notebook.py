"""The example notebook: every cell runs, in order, on a small life under the same name."""

import json
from pathlib import Path

import pytest

from tests.e2e.runs import BRIEF, merged, write_scenario

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first-run.ipynb"
LIFE = [
    {"join": {"clients": "all"}},
    {"train": {"rounds": 1}},
    {"forget": {"client": 3}},
    {"train": {"rounds": 3}},
]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    small = merged(BRIEF, timeline=LIFE, compare=["npo"], seeds=[1], data={"source": "authors", "clients": 5})
    (tmp_path / "scenarios").mkdir()
    write_scenario(tmp_path / "scenarios", small).rename(tmp_path / "scenarios" / "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    space: dict[str, object] = {}
    for cell in cells:
        assert cell["outputs"], "the notebook is stored with what it shows"
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), space)
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
    said = capsys.readouterr().out
    assert "keyword_filter: ''" in said
    assert "request 1, seed 1" in said
