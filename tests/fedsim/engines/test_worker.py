"""The clients' side: a node's messenger, the worker behind it, and the app that Ray's workers run."""

import threading
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsim.engines import node, worker
from fedsim.engines.route import ROUTE
from fedsim.engines.worker import WorkerSource, answer, make_worker_app
from fedsim.federation.grid import CLIENT_FAILED, InProcessGrid
from fedsim.places import Source as Place
from fedsim.scenario.file import check_scenario, dump_scenario
from tests.e2e.runs import BRIEF, merged

SWEPT = merged(BRIEF, sweep={"federation.weighting": ["examples", "uniform"]}, seeds=[1, 2])
SOURCE = WorkerSource(
    scenario=dump_scenario(check_scenario(SWEPT, Place(file="", lines={})).scenario), device="cpu", threads=1
)


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Messages cannot be made outside a task; Flower's runtimes see to that elsewhere."""
    InProcessGrid(app=None)  # type: ignore[arg-type]


def routed(client: int, message_type: str = "train", variant: str = "base", seed: int = 1) -> Message:
    route = ConfigRecord({"client": client, "variant": variant, "seed": seed})
    return Message(RecordDict({ROUTE: route}), 71, message_type, group_id="keep/1")


def context(**configuration: str) -> Context:
    return Context(run_id=1, node_id=71, node_config=dict(configuration), state=RecordDict(), run_config={})


def told(client: int) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"client": client})})


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A worker that answers with the client's number and fails for client 2."""

    def reply(source: WorkerSource, message: Message, context: Context) -> Message:
        client = int(str(message.content.config_records[ROUTE]["client"]))
        if client == 2:
            raise ValueError("out of luck")
        return Message(told(client), reply_to=message)

    monkeypatch.setattr(worker, "answer", reply)
    monkeypatch.setattr(worker, "_simulation", lambda source: None)
    address = str(tmp_path / "worker")
    threading.Thread(target=worker.serve, args=(SOURCE, address), daemon=True).start()
    return address


def test_a_message_goes_to_the_worker_and_back(socket: str) -> None:
    for client in (0, 1):
        reply = node.app(routed(client), context(clients="0,1", worker=socket))
        assert reply.content.metric_records["metrics"]["client"] == client
        assert (reply.metadata.src_node_id, reply.metadata.group_id) == (71, "keep/1")


def test_a_fault_at_the_worker_is_an_error_reply(socket: str) -> None:
    reply = node.app(routed(2), context(clients="2", worker=socket))
    assert reply.error.code == CLIENT_FAILED
    assert "ValueError: out of luck" in reply.error.reason
    assert node.app(routed(1), context(clients="1", worker=socket)).has_content()


def test_a_node_answers_for_its_own_clients_only(socket: str) -> None:
    with pytest.raises(ValueError, match="client 1 is not at this node"):
        node.app(routed(1), context(clients="0,11", worker=socket))


def test_a_worker_that_is_not_there_is_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(FileNotFoundError):
        node.app(routed(0), context(clients="0", worker=str(tmp_path / "nobody")))


def test_a_route_names_the_life() -> None:
    app = make_worker_app(SOURCE)
    order = '{"round": 1, "seed": %d, "branch": "keep", "version": 0, "local": {}}'
    for variant in ("weighting=examples", "weighting=uniform"):
        for seed in (1, 2):
            message = routed(0, "query.holds", variant, seed)
            message.content["config"] = ConfigRecord({"order": order % seed})
            reply = app(message, context())
            assert reply.content.metric_records["metrics"]["records"] == 9
    with pytest.raises(KeyError):
        answer(SOURCE, routed(0, "query.holds", "no such variant"), context())
