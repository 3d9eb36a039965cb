"""How many records of each public set are probed, and which are left for a retain term."""

from pathlib import Path

import pytest

from fedsim.app import runs
from fedsim.data.records import Corpus
from fedsim.measuring.config import MOST_PUBLIC, ProbesConfig
from fedsim.measuring.probes import unprobed
from fedsim.places import ScenarioError
from fedsim.scenario.file import load_scenario
from fedsim.storage.directory import RunDirectory
from tests.e2e.runs import BRIEF, merged, write_scenario
from tests.world import make_records


def test_one_size_for_all_or_one_by_name() -> None:
    assert ProbesConfig(max_public=3).most_public("any") == 3
    named = ProbesConfig(max_public={"world": 70})
    assert (named.most_public("world"), named.most_public("other")) == (70, MOST_PUBLIC)


def test_what_is_left_is_what_no_probe_draws() -> None:
    sets = {"a": tuple(make_records(1, 9)), "b": tuple(make_records(2, 9))}
    corpus = Corpus(clients={}, holdout=(), public=sets)
    left = unprobed(corpus, ProbesConfig(max_public={"a": 4, "b": 9}), seed=1)
    assert len(left) == 5
    assert set(left) < set(sets["a"])
    assert left == unprobed(corpus, ProbesConfig(max_public={"a": 4, "b": 9}), seed=1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"world": 3}, "max_public.world: there are no public records of this name; those of the data"),
        ({"public": 1}, "max_public.public: found 1"),
        (1, "found 1; must be a whole number of at least 2 or a mapping"),
    ],
)
def test_sizes_that_cannot_be(tmp_path: Path, sizes: object, message: str) -> None:
    path = write_scenario(tmp_path, merged(BRIEF, probes__max_public=sizes))
    with pytest.raises(ScenarioError, match=message):
        runs.prepare(load_scenario(path), RunDirectory(tmp_path / "run"))
