"""The run directory: whole files or none, tables that come back, a log that survives a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fedsim.storage.directory import RunDirectory
from fedsim.storage.tables import TABLES, write_table
from fedsim.storage.whole import read_json, whole_directory, whole_file, write_json


class Interrupted(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------- whole or not at all


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with whole_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failed_block_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], old: str | None
) -> None:
    target = tmp_path / "a.txt"
    if old is not None:
        target.write_text(old)

    def fail() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or target.read_text() == old


def test_a_block_that_writes_nothing_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_a_directory_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "state"
    for content in ("one", "two"):
        with whole_directory(target) as temporary:
            (temporary / content).write_text(content)
    assert names(target) == ["two"]
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
@pytest.mark.parametrize("old", [False, True])
def test_a_failed_directory_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], old: bool
) -> None:
    target = tmp_path / "state"
    if old:
        target.mkdir()
        (target / "kept").write_text("old")

    def fail() -> None:
        with whole_directory(target) as temporary:
            (temporary / "half").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["state"] if old else [])
    assert not old or names(target) == ["kept"]


def test_a_directory_that_cannot_take_its_place_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    target = tmp_path / "state"
    target.mkdir()
    (target / "kept").write_text("old")
    real = os.replace

    def failing(source: Path, destination: Path) -> None:
        if Path(destination) == target and Path(source).suffix == ".tmp":
            raise OSError("disk full")
        real(source, destination)

    monkeypatch.setattr("fedsim.storage.whole.os.replace", failing)
    with pytest.raises(OSError, match="disk full"), whole_directory(target) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["state"]
    assert names(target) == ["kept"]


# --------------------------------------------------------------------------------------- tables


def row(table: str, **values: Any) -> dict[str, Any]:
    empty = {"string": "x", "int64": 1, "double": 0.5}
    return {field.name: empty[str(field.type)] for field in TABLES[table]} | values


@pytest.mark.parametrize("table", TABLES)
def test_tables_come_back_in_order_and_byte_for_byte_alike(tmp_path: Path, table: str) -> None:
    rows = [row(table, round=round_, seed=seed) for round_ in (3, 1, 2) for seed in (2, 1)]
    one, two = RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "two")
    for run in (one, two):
        run.write_rows(table, rows)
    assert one.table(table).to_pylist() == rows
    assert one.table(table).schema.equals(TABLES[table])
    assert one.file(f"{table}.parquet").read_bytes() == two.file(f"{table}.parquet").read_bytes()


def test_special_values_come_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    values = [None, math.inf, -0.0, 1e-300]
    run.write_rows("metrics", [row("metrics", value=value, variant="lr=1,é") for value in values])
    assert run.table("metrics")["value"].to_pylist() == values
    run.write_rows("metrics", [row("metrics", value=math.nan)])
    assert math.isnan(run.table("metrics")["value"][0].as_py())


def test_a_missing_table_is_empty_with_its_columns(tmp_path: Path) -> None:
    table = RunDirectory(tmp_path).table("costs")
    assert (table.num_rows, table.schema) == (0, TABLES["costs"])


@pytest.mark.parametrize("change", [{"extra": 1}, {"value": ...}])
def test_rows_with_other_columns_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    odd = {**row("metrics"), **change}
    odd = {key: value for key, value in odd.items() if value is not ...}
    with pytest.raises(KeyError, match=r"do not fit the table m\.parquet"):
        write_table(tmp_path / "m.parquet", [row("metrics"), odd], TABLES["metrics"])
    assert names(tmp_path) == []


def test_a_row_of_the_wrong_type_keeps_the_old_table(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_rows("metrics", [row("metrics")])
    with pytest.raises(Exception, match="int"):
        run.write_rows("metrics", [row("metrics", round="three")])
    assert run.table("metrics").to_pylist() == [row("metrics")]
    assert names(tmp_path) == ["metrics.parquet"]


# ------------------------------------------------------------------------------- JSON and the log


def test_json_is_sorted_readable_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": [1], "b": "é"}


def test_what_json_cannot_hold_keeps_the_old_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("life", {"a": 1})
    with pytest.raises(TypeError):
        run.write_json("life", {"a": {1, 2}})
    assert run.json("life") == {"a": 1}
    assert names(tmp_path) == ["life.json"]


def test_the_log_is_appended_to_and_read_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new")
    assert run.events() == []
    run.log("started", time="now")
    run.log("failure", client=3, why="NaN")
    assert run.events() == [
        {"kind": "started", "time": "now"},
        {"kind": "failure", "client": 3, "why": "NaN"},
    ]


@pytest.mark.parametrize("kept", range(1, 40))
def test_a_log_cut_off_anywhere_still_reads_and_goes_on(tmp_path: Path, kept: int) -> None:
    """A kill may cut the last line at any byte, even where it looks like the end of an object."""
    run = RunDirectory(tmp_path)
    run.log("started")
    whole = run.file("events.jsonl").read_bytes()
    run.log("failure", why={"deep": {"a": "}é"}}, z=1)
    both = run.file("events.jsonl").read_bytes()
    run.file("events.jsonl").write_bytes(both[: min(len(whole) + kept, len(both) - 1)])
    assert run.events()[0] == {"kind": "started"}
    run.log("resumed")
    assert [event["kind"] for event in run.events() if event["kind"] != "failure"] == ["started", "resumed"]


def test_creating_the_object_touches_nothing(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "none")
    assert names(tmp_path) == []
