"""The report: one page, complete, self-contained, safe with odd names, honest about weak runs."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from plots import report
from plots.data import RunData
from plots.report import UNPROTECTED, main, write_report
from tests.plots.synthetic import FATES, REQUESTS, Fate, Plan, build


class Page(HTMLParser):
    """Tables' rows, what the page would fetch, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src":
                self.sources.append(value or "")
            if name == "href":
                self.links.append(value or "")


def written(path: Path, **changes: object) -> str:
    plan = dataclasses.replace(Plan(clients=12), **changes)
    return write_report(build(path, plan)).read_text(encoding="utf-8")


@pytest.fixture(name="bare")
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, for tests of the words alone."""
    monkeypatch.setattr(report, "draw_all", lambda run, folder: [])


def verdict_tables(html: str) -> list[str]:
    return re.findall(r'<table class="verdict">.*?</table>', html, flags=re.S)


def test_it_fetches_nothing_and_its_links_exist(tmp_path: Path) -> None:
    html = written(tmp_path)
    page = Page(html)
    assert page.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert all((tmp_path / link).exists() for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.usefixtures("bare")
def test_a_row_per_branch_and_request(tmp_path: Path) -> None:
    tables = verdict_tables(written(tmp_path))
    assert len(tables) == len(REQUESTS)
    for table in tables:
        body = table.split("<tbody>")[1]
        assert body.count("<tr") == len(FATES)
        assert all((fate.title if name not in ("keep", "leave", "retrain") else name) in body
                   for name, fate in FATES.items())  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_finding_and_banner_follow_the_run(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "good"), written(tmp_path / "bad", informative=False)
    assert "NPO is within the margins of the retrained model" in good
    assert "This run is informative." in good
    assert "This run is NOT informative." in bad
    assert "NPO reaches" not in bad
    assert "no value here is evidence of forgetting" in bad


@pytest.mark.usefixtures("bare")
def test_untrusted_values_are_grey_and_footnoted(tmp_path: Path) -> None:
    plain, doubtful = written(tmp_path / "a"), written(tmp_path / "b", trusted=False)
    grey = re.compile(r'<td class="[^"]*grey[^"]*"')
    assert not grey.search(plain)
    assert grey.search(doubtful)
    assert "not to be quoted" in doubtful


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    fates = dict(FATES) | {"evil": Fate(0.1, 3, 0.0, 0.2, evil)}
    html = written(tmp_path, name=evil, description=evil, fates=fates)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4
    assert "# &lt;resolved&gt;" in html


def test_mathtext_in_names_is_not_interpreted(tmp_path: Path) -> None:
    fates = dict(FATES) | {"odd": Fate(0.1, 3, 0.0, 0.2, "cost $\\frac{$ and $_x^")}
    assert "cost $" in written(tmp_path, fates=fates)


@pytest.mark.usefixtures("bare")
class TestPrivacy:
    def test_silence_is_called_no_protection(self, tmp_path: Path) -> None:
        assert UNPROTECTED in written(tmp_path)

    def test_epsilon_table(self, tmp_path: Path) -> None:
        html = written(tmp_path, epsilon=1.0)
        assert UNPROTECTED not in html
        assert "Largest ε" in html

    def test_views_promises_and_warnings(self, tmp_path: Path) -> None:
        page = written(tmp_path, epsilon=1.0)
        assert "Server and 2 colluding clients" in page
        assert "ε ≤ 8 at δ = 1e-05 (example_dp)" in page
        assert "vacuous for request 2" in page
        assert "differ by client 7 alone" in page
        assert UNPROTECTED not in page


def test_variants_have_sections(tmp_path: Path) -> None:
    html = written(tmp_path, variants=("plain", "noisy"))
    assert len(verdict_tables(html)) == 2 * len(REQUESTS)
    assert "Variant noisy" in html


@pytest.mark.usefixtures("bare")
def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert written(tmp_path, seeds=(1, 2)) == write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["verdict.json", "life.json"])
def test_a_partial_run_is_refused(tmp_path: Path, missing: str) -> None:
    build(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=rf"no {missing}: the run has not finished"):
        RunData.load(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such run" in capsys.readouterr().err
    assert main([str(build(tmp_path / "run"))]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_importing_brings_no_torch_and_changes_no_settings() -> None:
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams); import plots.report;"
        "assert dict(matplotlib.rcParams) == before;"
        "assert not {'torch', 'privacy'} & set(sys.modules);"
        "assert {m.split('.')[1] for m in sys.modules if m.startswith('fedsim.')} == {'storage'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
