"""The in-process Grid, and the private parts of Flower that it stands on."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedsim.federation.client import INSTRUMENTS, UPDATE
from fedsim.federation.exchange import Taken
from fedsim.federation.grid import (
    CLIENT_FAILED,
    SERVER_NODE,
    InProcessGrid,
    client_of,
    node_of,
    payload_bytes,
)
from fedsim.federation.rounds import run_round
from fedsim.federation.strategies.registry import strategy_of
from fedsim.life.steps import UnlearningStep
from fedsim.model.adapter import AdapterModel
from fedsim.training.config import LocalConfig
from fedsim.unlearning.methods.npo import Npo
from fedsim.unlearning.request import Request
from tests.world import make_records, make_step, make_world, same


def echo_app(failing: int | None = None) -> tuple[ClientApp, list[int]]:
    """Replies with the client's number and what it was sent; keeps the order in which clients were asked."""
    app, asked = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        asked.append(client)
        if client == failing:
            raise ValueError("out of luck")
        content = RecordDict({"metrics": MetricRecord({"client": client})})
        if "arrays" in message.content.array_records:
            content["arrays"] = message.content.array_records["arrays"]
        return Message(content, reply_to=message)

    return app, asked


def ask(grid: InProcessGrid, clients: list[int], content: RecordDict | None = None) -> list[Message]:
    messages = [
        grid.create_message(content or RecordDict(), "train", node_of(client), "1") for client in clients
    ]
    return grid.send_and_receive(messages)


def test_it_is_a_grid() -> None:
    grid = InProcessGrid(echo_app()[0])
    assert isinstance(grid, Grid)
    grid.roster = (4, 2)
    assert list(grid.get_node_ids()) == [1004, 1002]
    assert [client_of(node) for node in grid.get_node_ids()] == [4, 2]
    with pytest.raises(NotImplementedError):
        _ = grid.run


@pytest.mark.parametrize("serialise", [False, True])
def test_clients_are_asked_in_order_of_node_id(serialise: bool) -> None:
    app, asked = echo_app()
    replies = ask(InProcessGrid(app, serialise=serialise), [11, 2, 7])
    assert asked == [2, 7, 11]
    assert [client_of(reply.metadata.src_node_id) for reply in replies] == [2, 7, 11]
    assert [reply.content.metric_records["metrics"]["client"] for reply in replies] == [2, 7, 11]


@pytest.mark.parametrize("serialise", [False, True])
def test_an_exception_becomes_that_clients_error_reply(serialise: bool) -> None:
    app, asked = echo_app(failing=2)
    replies = ask(InProcessGrid(app, serialise=serialise), [1, 2, 3])
    assert asked == [1, 2, 3]
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == CLIENT_FAILED
    assert "ValueError: out of luck" in replies[1].error.reason
    assert client_of(replies[1].metadata.src_node_id) == 2


def test_training_goes_together_whatever_else_is_sent() -> None:
    """Branches may be in different phases: a question beside trainings does not take them apart."""
    app, _ = echo_app()
    jointly: list[int] = []

    @app.query("holds")
    def forget(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"client": 0})}), reply_to=message)

    def together(messages):
        jointly.append(len(messages))
        return [app(message, context) for message, context in messages]

    grid = InProcessGrid(app, train_together=together)
    kinds = {1: "train", 2: "query.holds", 3: "train"}
    messages = [grid.create_message(RecordDict(), kind, node_of(c), str(c)) for c, kind in kinds.items()]
    replies = grid.send_and_receive(messages)
    assert jointly == [2]
    assert [client_of(reply.metadata.src_node_id) for reply in replies] == [1, 2, 3]
    assert [reply.metadata.group_id for reply in replies] == ["1", "2", "3"]


def test_a_message_of_a_type_nobody_handles_is_an_error_reply() -> None:
    grid = InProcessGrid(echo_app()[0])
    (reply,) = grid.send_and_receive([grid.create_message(RecordDict(), "query.nothing", node_of(1), "1")])
    assert reply.has_error()


def test_an_interrupt_is_nobodys_failure() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(InProcessGrid(app), [1])


@pytest.mark.parametrize("serialise", [False, True])
def test_what_crosses_is_counted_by_hand(serialise: bool) -> None:
    """Down: 10 floats and the five letters of a text and an int; up: one metric, and the floats again."""
    app, _ = echo_app(failing=3)
    grid = InProcessGrid(app, serialise=serialise)
    arrays = ArrayRecord({"a": Array(np.zeros(10, np.float32))})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"text": "hello", "number": 3})})
    size = sum(len(array.data) for array in arrays.values())
    assert 40 <= size < 400  # the floats and the header of their format
    assert payload_bytes(content) == size + 5 + 8
    messages = [grid.create_message(content, "train", node_of(client), "1") for client in (1, 2, 3)]
    taken = Taken()
    taken.add(messages, grid.send_and_receive(messages))
    assert (taken.messages, taken.bytes_down) == (3, 3 * (size + 13))
    assert taken.bytes_up == 2 * (size + 8)  # the client that failed sent nothing
    assert (taken.clients, taken.steps, taken.tokens) == (0, 0, 0)  # nobody had instruments


def test_instruments_are_read_and_are_no_traffic() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({INSTRUMENTS: MetricRecord({"steps": 3, "tokens": 70})}), reply_to=message)

    grid, taken = InProcessGrid(app), Taken()
    messages = [grid.create_message(RecordDict(), "train", node_of(client), "1") for client in (1, 2)]
    taken.add(messages, grid.send_and_receive(messages))
    assert taken == Taken(messages=2, clients=2, steps=6, tokens=140)


def test_a_client_that_does_not_tell_makes_counts_unknown() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        told = {} if context.node_config["client"] == 2 else {"steps": 3, "tokens": 70}
        content = RecordDict({UPDATE: ArrayRecord({"payload": Array(np.zeros(1, np.float32))})})
        if told:
            content[INSTRUMENTS] = MetricRecord(told)
        return Message(content, reply_to=message)

    grid, taken = InProcessGrid(app), Taken()
    messages = [grid.create_message(RecordDict(), "train", node_of(client), "1") for client in (1, 2, 3)]
    taken.add(messages, grid.send_and_receive(messages))
    assert (taken.clients, taken.steps, taken.tokens) == (3, None, None)


def test_push_and_pull() -> None:
    grid = InProcessGrid(echo_app()[0])
    messages = [grid.create_message(RecordDict(), "train", node_of(client), "1") for client in (1, 2)]
    ids = list(grid.push_messages(messages))
    assert len(set(ids)) == 2
    assert len(list(grid.pull_messages(ids))) == 2
    assert list(grid.pull_messages(ids)) == []


# ----------------------------------------------------------------- serialising changes nothing

REQUEST = Request(
    number=1, client=1, round=1, scope="client", record_ids=tuple(r.record_id for r in make_records(1, 5))
)
MASKED = [{"stage": "clip", "norm": 0.5}, {"stage": "secure_aggregation"}]
PRIVATE = [
    {"stage": "example_dp", "noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 1.0, "accountant": "rdp"},
    *MASKED,
]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"privacy": MASKED},
        {"privacy": PRIVATE, "weighting": "uniform"},
        {"strategy": strategy_of("fedadam")},
        {"strategy": strategy_of("fedprox", proximal_mu=1.0)},
        {"local": LocalConfig(epochs=1, batch_size=3, lr=0.01)},
    ],
    ids=["plain", "masked", "private", "fedadam", "fedprox", "adamw"],
)
def test_a_life_is_bitwise_the_same_when_every_message_is_serialised(model: AdapterModel, settings) -> None:
    method = Npo(rounds=2, retain="kl")
    lives = []
    for serialise in (False, True):
        world = make_world(model, methods=[method], requests=[REQUEST], serialise=serialise, **settings)
        model.load(make_model_arrays(model))
        federation = world.federation()
        outcomes = [run_round(federation, make_step(1, [0, 1, 2, 3]), "npo", world.engine)]
        for index in range(2):
            step = make_step(2 + index, [0, 2, 3], UnlearningStep(branch="npo", request=1, index=index))
            outcomes.append(run_round(federation, step, "npo", world.engine))
        lives.append((federation, outcomes))
    (direct, told), (carried, told_again) = lives
    assert all(outcome.kind != "empty" and not outcome.failures for outcome in told), told
    assert told == told_again
    assert same(direct.adapter, carried.adapter)
    assert direct.ledger.to_json() == carried.ledger.to_json()
    states = direct.server_memory(), carried.server_memory()
    assert states[0].keys() == states[1].keys()
    assert all(same(states[0][group], states[1][group]) for group in states[0])


def make_model_arrays(model: AdapterModel) -> dict[str, np.ndarray]:
    """A start that is the same whatever test ran before."""
    draws = np.random.default_rng(3)
    return {
        name: draws.normal(0, 0.2, size=tuple(value.shape)).astype(np.float32)
        for name, value in model.parameters().items()
    }


# --------------------------------------------------------- contracts with Flower's private parts


def test_a_message_carries_the_identity_of_the_task() -> None:
    InProcessGrid(echo_app()[0])
    message = Message(RecordDict(), dst_node_id=1007, message_type="train", group_id="4")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (1, SERVER_NODE)
    assert message.metadata.dst_node_id == 1007


def test_a_message_cannot_be_made_without_an_identity(monkeypatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError):
        Message(RecordDict(), dst_node_id=1, message_type="train")


def test_a_reply_goes_back_to_where_the_message_came_from() -> None:
    grid = InProcessGrid(echo_app()[0])
    message = grid.create_message(RecordDict(), "train", node_of(5), "2")
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.src_node_id == node_of(5)
    assert reply.metadata.dst_node_id == SERVER_NODE
    server = grid.reply_from_server(RecordDict(), "2")
    assert server.has_content()


def test_protobuf_carries_every_kind_of_content_bit_by_bit() -> None:
    grid = InProcessGrid(echo_app()[0])
    arrays = {
        "float": np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32),
        "codes": np.array([0, 2**32 - 1], np.uint32),
        "empty": np.zeros((0, 3), np.float32),
    }
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            "config": ConfigRecord({"text": "é", "raw": b"\x00\xff", "whole": -3, "real": 0.1, "yes": True}),
            "metrics": MetricRecord({"one": 1, "half": 0.5}),
        }
    )
    message = grid.create_message(content, "train", node_of(1), "1")
    data = message_to_proto(message).SerializeToString()
    found = message_from_proto(ProtoMessage.FromString(data))
    for name, value in arrays.items():
        there = found.content.array_records["arrays"][name].numpy()
        assert there.dtype == value.dtype
        assert there.shape == value.shape
        assert there.tobytes() == value.tobytes()
    assert dict(found.content.config_records["config"]) == dict(content.config_records["config"])
    assert dict(found.content.metric_records["metrics"]) == {"one": 1, "half": 0.5}
    assert found.metadata.message_type == "train"
    assert found.metadata.dst_node_id == node_of(1)
