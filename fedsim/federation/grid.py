"""Flower Grids whose nodes are our clients; here the one that asks the ClientApp in this process.

The only file that touches Flower's private parts: a Message cannot be made without the process-wide
task identity, and messages become bytes through Flower's own protobuf converters. Membership is what the
roster says, and an exception in a client becomes an error reply.
``Grid``: https://flower.ai/docs/framework/ref-api/flwr.serverapp.Grid.html
"""

from __future__ import annotations

import traceback
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_STATE = "client-state"
"""Name of the record with what a client remembers from message to message."""
SHARED = "shared"
"""Name of the record with the vectors that the server sends beside the adapter."""
OWN = "client-state-vectors"
"""Name of the record with the vectors that a simulated client remembers."""
QUERIES = ("holds", "advertise", "share", "unmask")
"""The queries that a client answers, beside ``train``; whoever passes messages on passes on these."""
CLIENT_FAILED = 1
SERVER_NODE = 1
_FIRST_CLIENT_NODE = 1000


def node_of(client: int) -> int:
    """The node id of a client."""
    return _FIRST_CLIENT_NODE + client


def client_of(node: int) -> int:
    """The client behind a node id."""
    return node - _FIRST_CLIENT_NODE


def context_of(client: int, *, run_id: int = 1, node_id: int | None = None) -> Context:
    """A fresh context in which a ClientApp is this client; by default on the client's own node."""
    return Context(
        run_id=run_id,
        node_id=node_of(client) if node_id is None else node_id,
        node_config={"client": client},
        state=RecordDict(),
        run_config={},
    )


def payload_bytes(content: RecordDict) -> int:
    """Bytes of arrays, configuration and metrics in a message's content, without protocol framing.

    What the simulator carries for a client does not count: a real one would keep it.
    """
    size = 0
    for name, record in content.array_records.items():
        size += 0 if name == OWN else sum(len(array.data) for array in record.values())
    for name, config in content.config_records.items():
        if name == CLIENT_STATE:
            continue
        size += sum(len(value) if isinstance(value, (str, bytes)) else 8 for value in config.values())
    for metrics in content.metric_records.values():
        size += 8 * len(metrics)
    return size


def to_bytes(message: Message) -> bytes:
    """A message as Flower's protobuf bytes."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def from_bytes(data: bytes) -> Message:
    """The inverse of ``to_bytes``."""
    return message_from_proto(ProtoMessage.FromString(data))


def failure(message: Message, error: Exception) -> Message:
    """The error reply of a client whose answer to ``message`` was an exception; says where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({frame.name}:{frame.lineno})" for frame in last)
    return refusal(message, f"{type(error).__name__}: {error}{place}")


def refusal(message: Message, reason: str) -> Message:
    """An error reply to ``message``."""
    return Message(Error(code=CLIENT_FAILED, reason=reason), reply_to=message)


TrainTogether = Callable[[Sequence[tuple[Message, Context]]], Sequence[Message | Exception]]
"""Answers several clients' ``train`` messages, in their order; an exception is that client's answer."""


class RosterGrid(Grid):
    """A Grid whose nodes are the clients of the current roster; how messages get there, subclasses say."""

    def __init__(self) -> None:
        self.roster: tuple[int, ...] = ()
        self._replies: dict[str, Message] = {}

    @abstractmethod
    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and give one reply for each, in order of node id; a fault is an error reply."""

    def set_run(self, run: Run) -> None:
        """Nothing to set: a grid belongs to one run from the start."""

    @property
    def run(self) -> Run:
        raise NotImplementedError("a grid of clients has no SuperLink run")

    def get_node_ids(self) -> Iterable[int]:
        return [node_of(client) for client in self.roster]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(
            content=content, message_type=message_type, dst_node_id=dst_node_id, group_id=group_id, ttl=ttl
        )

    def reply_from_server(self, content: RecordDict, group_id: str) -> Message:
        """A reply as if one client had sent ``content``: what a Strategy gets after the privacy pipeline."""
        asked = self.create_message(RecordDict(), "train", SERVER_NODE, group_id)
        return Message(content, reply_to=asked)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for reply in self.send_and_receive(messages):
            key = uuid.uuid4().hex
            self._replies[key] = reply
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(key) for key in message_ids if key in self._replies]


class InProcessGrid(RosterGrid):
    """A Grid that hands messages straight to the ClientApp, in order of node id.

    ``train_together`` answers all ``train`` messages of one sending, which the app would answer alike but one
    by one. ``serialise`` sends every message through its protobuf bytes and back, as a network would; results
    must not change by it.
    """

    def __init__(
        self, app: ClientApp, *, train_together: TrainTogether | None = None, serialise: bool = False
    ) -> None:
        super().__init__()
        self.app = app
        self.train_together = train_together
        self.serialise = serialise
        self._contexts: dict[int, Context] = {}
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages in order of node id and give the replies in that order.

        ``timeout`` is met trivially: clients run in this process, and it waits for them.
        """
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        asked = [_through_bytes(message) if self.serialise else message for message in ordered]
        contexts = [self._context(message.metadata.dst_node_id) for message in ordered]
        answers: dict[int, Message | Exception] = {}
        if self.train_together is not None:
            training = [i for i, one in enumerate(ordered) if one.metadata.message_type == MessageType.TRAIN]
            together = self.train_together([(asked[index], contexts[index]) for index in training])
            answers |= dict(zip(training, together, strict=True))
        for index in range(len(ordered)):
            if index not in answers:
                answers[index] = self._ask(asked[index], contexts[index])
        return [self._reply(message, answers[index]) for index, message in enumerate(ordered)]

    def _ask(self, message: Message, context: Context) -> Message | Exception:
        try:
            return self.app(message, context)
        except Exception as error:
            return error

    def _reply(self, message: Message, answer: Message | Exception) -> Message:
        if isinstance(answer, Exception):
            return failure(message, answer)
        return _through_bytes(answer) if self.serialise else answer

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = context_of(client_of(node))
        return self._contexts[node]


def _through_bytes(message: Message) -> Message:
    """The message as the other side would see it: protobuf bytes, parsed again."""
    return from_bytes(to_bytes(message))
