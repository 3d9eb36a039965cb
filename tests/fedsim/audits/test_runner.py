"""Audits are run in order, kept as they end, and not run again after a kill."""

from types import SimpleNamespace

import pytest

from fedsim.audits.kinds.canaries import CanaryAudit
from fedsim.audits.registry import AUDITS
from fedsim.audits.runner import FOUND, audits_json
from fedsim.storage.directory import RunDirectory
from fedsim.storage.progress import Quiet


class Notes(Quiet):
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


class Counting(CanaryAudit):
    """An audit that counts how often it is run, and breaks where it is told to."""

    name: str
    runs: list[int]
    breaks: bool = False

    def rows(self, life, part):
        self.runs.append(1)
        if self.breaks:
            raise KeyboardInterrupt
        yield life.row(stage="client_dp", broken=True, audited_epsilon=3.0, claimed_epsilon=1.0, by=self.name)


def counting(name: str, **more) -> Counting:
    return Counting.model_construct(audit="canaries", name=name, runs=[], **more)


def life(seed: int):
    return SimpleNamespace(context=SimpleNamespace(variant="base", seed=seed), final_federation=None)


def test_rows_are_kept_as_they_come_and_a_killed_run_goes_on(tmp_path) -> None:
    directory = RunDirectory(tmp_path)
    first, breaking = counting("a"), counting("b", breaks=True)
    with pytest.raises(KeyboardInterrupt):
        audits_json([first, breaking], [life(1)], directory, Notes())
    assert [line["place"] for line in directory.lines(FOUND)] == [0]
    again, whole = counting("a"), counting("b")
    found = audits_json([again, whole], [life(1), life(2)], directory, Notes())
    assert (len(again.runs), len(whole.runs)) == (1, 2)  # of life 1 the first audit had ended
    assert [(row["seed"], row["by"]) for row in found["canaries"]] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert set(found) == set(AUDITS)


def test_a_line_that_a_kill_cut_off_is_run_again(tmp_path) -> None:
    directory = RunDirectory(tmp_path)
    (tmp_path / FOUND).write_text('{"variant": "base", "seed": 1, "pla')
    one = counting("a")
    assert len(audits_json([one], [life(1)], directory, Notes())["canaries"]) == 1
    assert len(directory.lines(FOUND)) == 1


def test_a_broken_claim_is_told_at_once(tmp_path) -> None:
    notes = Notes()
    audits_json([counting("a")], [life(1)], RunDirectory(tmp_path), notes)
    assert notes.told == [
        "base, seed 1: audit by canaries",
        "base, seed 1: the claim of client_dp is BROKEN: audited epsilon 3 above the claimed 1",
    ]


def test_every_audit_says_what_it_does() -> None:
    for name, audit in AUDITS.items():
        assert audit.summary
        assert audit().audit == name
