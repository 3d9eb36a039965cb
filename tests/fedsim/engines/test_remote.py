"""A Grid over one of Flower's: every message gets a reply, whatever happens to its node."""

import threading
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.engines.errors import EngineError, EngineStoppedError
from fedsim.engines.remote import Link, OwnNodes, RemoteGrid, any_node, wait_for
from fedsim.engines.route import ROUTE
from fedsim.federation.grid import InProcessGrid, client_of, node_of

Answer = Callable[[Message], Message | None]


class FlowerGrid(Grid):
    """A stand-in for one of Flower's Grids: nodes answer at once, or never."""

    def __init__(self, nodes: dict[int, Answer], *, lost: Iterable[int] = ()) -> None:
        self.nodes, self.lost = nodes, set(lost)
        self.replies: dict[str, Message] = {}
        self.sent: list[Message] = []

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> object:
        raise NotImplementedError

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: object, *, timeout: object = None) -> list[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        self.sent.append(message)
        if message.metadata.dst_node_id in self.lost:
            return []
        key = f"message-{len(self.sent)}"
        message.metadata.__dict__["_message_id"] = key
        reply = self.nodes[message.metadata.dst_node_id](message)
        if reply is not None:
            self.replies[key] = reply
        return [key]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Messages cannot be made outside a task; Flower's runtimes see to that elsewhere."""
    InProcessGrid(app=None)  # type: ignore[arg-type]


def echo(message: Message) -> Message:
    route = message.content.config_records[ROUTE]
    content = RecordDict(
        {"metrics": MetricRecord({"client": int(route["client"]), "seed": int(route["seed"])})}
    )
    return Message(content, reply_to=message)


def silent(message: Message) -> None:
    return None


def broken(message: Message) -> Message:
    return Message(Error(code=5, reason="out of luck"), reply_to=message)


def make_link(flower: FlowerGrid, timeout: float = 0.05) -> Link:
    return Link(flower=flower, timeout=timeout, poll=0.01)


def ask(grid: RemoteGrid, clients: list[int]) -> list[Message]:
    arrays = ArrayRecord({"a": Array(np.zeros(2, np.float32))})
    messages = [
        grid.create_message(RecordDict({"arrays": arrays}), "train", node_of(client), f"keep/{client}")
        for client in clients
    ]
    replies = grid.send_and_receive(messages)
    assert all(set(message.content) == {"arrays"} for message in messages), "messages are left as they were"
    return replies


def test_replies_come_back_as_if_from_our_nodes() -> None:
    flower = FlowerGrid({71: echo, 72: echo})
    link = make_link(flower)
    grid = RemoteGrid(link, any_node(link), variant="base", seed=3)
    replies = ask(grid, [11, 2, 7])
    assert [client_of(reply.metadata.src_node_id) for reply in replies] == [2, 7, 11]
    assert [reply.metadata.group_id for reply in replies] == ["keep/2", "keep/7", "keep/11"]
    found = [reply.content.metric_records["metrics"] for reply in replies]
    assert [(record["client"], record["seed"]) for record in found] == [(2, 3), (7, 3), (11, 3)]
    assert [message.metadata.dst_node_id for message in flower.sent] == [71, 72, 71]


def test_two_messages_for_one_client_are_two_replies() -> None:
    link = make_link(FlowerGrid({71: echo}))
    replies = ask(RemoteGrid(link, any_node(link), variant="base", seed=1), [4, 4])
    assert [client_of(reply.metadata.src_node_id) for reply in replies] == [4, 4]
    assert not any(reply.has_error() for reply in replies)


@pytest.mark.parametrize(
    ("node", "reason"),
    [(silent, "no answer after 0.05 seconds"), (broken, "out of luck")],
)
def test_a_node_that_fails_is_its_clients_failure(node: Answer, reason: str) -> None:
    link = make_link(FlowerGrid({71: echo, 72: node}))
    replies = ask(RemoteGrid(link, OwnNodes(link, {71: [0, 2], 72: [1]}), variant="base", seed=1), [0, 1, 2])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert reason in replies[1].error.reason
    assert client_of(replies[1].metadata.src_node_id) == 1


def test_a_message_that_cannot_be_sent_is_its_clients_failure() -> None:
    flower = FlowerGrid({71: echo, 72: echo}, lost=[72])
    link = make_link(flower)
    replies = ask(RemoteGrid(link, any_node(link), variant="base", seed=1), [0, 1])
    assert [reply.has_error() for reply in replies] == [False, True]


def test_nodes_come_and_go() -> None:
    flower = FlowerGrid({71: echo})
    link = make_link(flower)
    grid = RemoteGrid(link, OwnNodes(link, {71: [0], 72: [1, 2]}), variant="base", seed=1)
    (reply,) = ask(grid, [1])
    assert reply.error.reason == "no node of this client is connected"
    flower.nodes[72] = echo
    assert not any(reply.has_error() for reply in ask(grid, [0, 1, 2]))
    del flower.nodes[71]
    assert [reply.has_error() for reply in ask(grid, [0, 1, 2])] == [True, False, False]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 99), unique=True), st.sets(st.integers(0, 5)))
def test_a_node_that_comes_later_takes_nobody_over(strangers: list[int], gone: set[int]) -> None:
    """Whatever other nodes are connected, and whichever of our own are gone, a message goes to the client's
    own node or nowhere."""
    own = {100 + client: [client] for client in range(6)}
    flower = FlowerGrid(dict.fromkeys((*strangers, *(n for n in own if n - 100 not in gone)), echo))
    link = make_link(flower)
    replies = ask(RemoteGrid(link, OwnNodes(link, own), variant="base", seed=1), list(range(6)))
    assert {message.metadata.dst_node_id for message in flower.sent} == {100 + c for c in range(6)} - {
        100 + c for c in gone
    }
    assert [reply.has_error() for reply in replies] == [client in gone for client in range(6)]


def test_without_any_node_everybody_fails() -> None:
    link = make_link(FlowerGrid({}))
    replies = ask(RemoteGrid(link, any_node(link), variant="base", seed=1), [0, 1])
    assert all(reply.has_error() for reply in replies)


def test_any_answer_renews_everybodys_time() -> None:
    """Three nodes answer one after another, each within the timeout but the last long after the first."""
    flower = FlowerGrid({71: silent, 72: silent, 73: silent})
    link = make_link(flower, timeout=0.3)
    grid = RemoteGrid(link, any_node(link), variant="base", seed=1)
    answered: list[Message] = []

    def answer_slowly() -> None:
        while len(answered) < 3:
            threading.Event().wait(0.2)
            message = flower.sent[len(answered)]
            answered.append(message)
            flower.replies[message.metadata.message_id] = echo(message)

    thread = threading.Thread(target=answer_slowly)
    thread.start()
    replies = ask(grid, [0, 1, 2])
    thread.join()
    assert not any(reply.has_error() for reply in replies)


def test_a_stopped_engine_ends_the_wait() -> None:
    link = make_link(FlowerGrid({71: silent}), timeout=60)
    threading.Timer(0.1, link.stopping.set).start()
    with pytest.raises(EngineStoppedError):
        ask(RemoteGrid(link, any_node(link), variant="base", seed=1), [0])


def test_an_error_of_the_engine_is_nobodys_failure() -> None:
    flower = FlowerGrid({71: broken})
    link = Link(flower=flower, timeout=1, poll=0.01, fatal_codes=frozenset({5}))
    with pytest.raises(EngineError, match="a worker died: out of luck"):
        ask(RemoteGrid(link, any_node(link), variant="base", seed=1), [0])


def test_waiting_names_the_clients_that_are_missing() -> None:
    link = make_link(FlowerGrid({71: echo}))
    where = OwnNodes(link, {71: [0, 2]})
    wait_for(where, [0, 2], link=link, seconds=0)
    with pytest.raises(TimeoutError, match=r"clients 1, 3 after 0\.05 seconds"):
        wait_for(where, [0, 1, 2, 3], link=link, seconds=0.05)
