"""What a scenario asks of its privacy pipeline is blamed on the key that asks for it."""

from pathlib import Path

import pytest

from fedsim.assembly.build import load_and_check, make_context
from fedsim.scenario.file import ScenarioError, load_scenario
from tests.e2e.runs import BRIEF, merged, write_scenario


def test_a_longest_update_beside_a_bound_is_refused_at_its_key(tmp_path: Path) -> None:
    clipped = merged(BRIEF, federation__max_update_norm=3.0, privacy=[{"stage": "clip", "norm": 0.5}])
    with pytest.raises(ScenarioError, match=r"federation\.max_update_norm: .*at 0\.5 already.*leave"):
        load_and_check(load_scenario(write_scenario(tmp_path, clipped)))


def test_a_longest_update_reaches_the_server(tmp_path: Path) -> None:
    loaded = load_scenario(write_scenario(tmp_path, merged(BRIEF, federation__max_update_norm=3.0)))
    context = make_context(load_and_check(loaded), loaded.variants[0], 1)
    assert context.engine.runtime.pipeline.channel.max_norm == 3.0
