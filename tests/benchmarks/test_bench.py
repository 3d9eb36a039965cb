"""Benchmarks run and say what they should; never how long anything takes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.harness import ROOT, Options, Report, Variant, interleave, ratio
from benchmarks.tables import markdown


def test_variants_take_turns_after_one_run_for_nothing() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    variants = [
        Variant(name="a", measure=lambda: measure("a")),
        Variant(name="b", measure=lambda: measure("b"), warms_itself=True),
    ]
    assert interleave(variants, 2) == {"a": [2.0, 4.0], "b": [3.0, 5.0]}
    assert order == ["a", "a", "b", "a", "b"]


def test_a_ratio_is_one_of_medians_with_the_range_over_turns() -> None:
    found = ratio("a over b", [2.0, 8.0, 6.0], [1.0, 2.0, 2.0], at_least=3.0)
    assert (found.value, found.lowest, found.highest, found.met) == (3.0, 2.0, 4.0, True)
    assert ratio("a over b", [3.0], [2.0], at_most=1.2).met is False
    assert ratio("a over b", [3.0], [2.0]).met is None


def test_tables_can_be_pasted() -> None:
    report = Report(name="x", title="X", unit="s", settings={"n": 1}, samples={"a": [2.0, 1.0, 3.0]})
    assert markdown(report).splitlines() == [
        "## X",
        "",
        "n=1",
        "",
        "| s | median | lowest | highest | n |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | 2 | 1 | 3 | 3 |",
    ]


def test_a_size_is_small_only_when_asked() -> None:
    assert Options().size(100, 6) == 100
    assert Options(small=True).size(100, 6) == 6


def test_an_unknown_benchmark_is_refused() -> None:
    done = _bench("nosuch")
    assert done.returncode == 2
    assert "no benchmark 'nosuch'" in done.stderr
    told = _bench("--help").stdout
    assert all(name in told for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ratios"),
    [("efficiency", 1), ("privacy_cost", 2), ("scaling", 3), ("branches", 2), ("instruct", 3)],
)
def test_benchmarks_run_in_small(name: str, ratios: int, tmp_path: Path) -> None:
    done = _bench(name, "--small", "--repeat", "1", "--threads", "1", "--markdown", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(found["ratios"]) == ratios
    assert all(value > 0 for values in found["samples"].values() for value in values)
    assert all(math.isfinite(one["value"]) and one["value"] > 0 for one in found["ratios"])
    assert found["machine"]["cores"] > 0
    assert "torch" in found["machine"]["packages"]
    assert f"## {found['title']}" in done.stdout


@pytest.mark.slow
def test_the_gpu_benchmark_works_in_small(tmp_path: Path) -> None:
    """Without a GPU both sides of the comparison are the CPU; what the script writes is whole."""
    done = _bench("gpu", "--small", "--repeat", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    facts = found["facts"]
    (equal,) = [one for one in found["ratios"] if one["name"].startswith("distance from the CPU")]
    assert equal["met"] is True
    planned = [value for name, value in facts.items() if name.startswith("planned memory")]
    assert len(planned) == 3
    assert all(value > 0 for value in planned)


def _bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
