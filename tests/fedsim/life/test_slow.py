"""Stragglers that do less: which orders say so, what they train, and that it ends."""

import numpy as np
import pytest

from fedsim.federation.orders import WorkOrder
from fedsim.life.events.drop import FallsSilent
from fedsim.life.events.slow import Hurried
from fedsim.places import ScenarioError
from fedsim.training.config import LocalConfig
from tests.e2e.runs import BRIEF, merged, run
from tests.fedsim.life.lives import life_of, live, records_of

JOIN = {"join": {"clients": "0-3"}}


def test_it_holds_for_its_rounds_and_its_clients() -> None:
    events = [JOIN, {"slow": {"clients": "1-2", "epochs": 2, "rounds": 2}}, {"train": {"rounds": 3}}]
    hurried = (Hurried(epochs=2),)
    steps = live(events, records_of(4), participation=1.0).steps("keep")
    assert [dict(step.conditions) for step in steps] == [
        {1: hurried, 2: hurried},
        {1: hurried, 2: hurried},
        {},
    ]


def test_it_is_told_and_only_who_is_there_is_slow() -> None:
    life = life_of([JOIN, {"slow": {"clients": 1}}, {"train": {"rounds": 1}}], records_of(4))
    assert life.events[1].text == "client 1 does 1 pass at most"
    assert life.label(0) == "join+slow"
    with pytest.raises(ScenarioError, match=r"timeline\[1\].slow.clients: client 7 is not in the data"):
        life_of([JOIN, {"slow": {"clients": 7}}, {"train": {"rounds": 1}}], records_of(4))
    with pytest.raises(ScenarioError, match="nobody is there to be slow"):
        life_of([{"slow": {"clients": "all"}}, JOIN, {"train": {"rounds": 1}}], records_of(4))


def test_it_never_lets_a_client_do_more() -> None:
    local = LocalConfig(epochs=3)
    assert [Hurried(epochs=n).local(local).epochs for n in (1, 3, 9)] == [1, 3, 3]


def test_slow_and_silent_at_once_travel_with_the_order() -> None:
    events = [JOIN, {"slow": {"clients": 1}}, {"drop": {"clients": 1}}, {"train": {"rounds": 1}}]
    (step,) = live(events, records_of(4), participation=1.0).steps("keep")
    both = dict(step.conditions)[1]
    assert set(both) == {Hurried(epochs=1), FallsSilent(stage="after_masking")}
    order = WorkOrder(round=1, seed=1, branch="keep", version=0, local=LocalConfig(), conditions=both)
    assert WorkOrder.model_validate_json(order.model_dump_json()) == order


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds, in the first of which client 0 does a third of its passes."""
    life = [
        {"join": {"clients": "0-1"}},
        {"slow": {"clients": 0, "epochs": 1}},
        {"train": {"rounds": 2}},
    ]
    changes = {"timeline": life, "compare": [], "data": {"source": "authors", "clients": 2}}
    federation = {"participation": 1.0, "local": {"epochs": 3, "batch_size": 64}}
    return run(tmp_path_factory.mktemp("slow"), merged(BRIEF, federation=federation, **changes))


def test_fewer_steps_are_counted(finished) -> None:
    costs = [row for row in finished.table("costs").to_pylist() if row["branch"] == "keep"]
    assert [row["client_steps"] for row in costs] == [1 + 3, 3 + 3]
    norms = [r["value"] for r in finished.table("metrics").to_pylist() if r["metric"] == "update_norm"]
    assert np.isfinite(norms).all()


def test_passes_that_slow_nobody_are_refused(tmp_path) -> None:
    timeline = [{"join": {"clients": "all"}}, {"slow": {"clients": 1, "epochs": 5}}, {"train": {"rounds": 1}}]
    with pytest.raises(ScenarioError, match=r"timeline.1..slow.epochs: 5 slows nobody, as .* is 1"):
        run(tmp_path, merged(BRIEF, timeline=timeline))
