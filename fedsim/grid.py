"""An in-process Flower Grid: messages go straight to the ClientApp, in order of node id.

The only file that touches Flower's private parts: a Message cannot be made without the process-wide
task identity, and the serialise-every-message mode uses Flower's own protobuf converters.
Membership is what the roster says, an exception in a client becomes an error reply, and every byte
that crosses is counted. ``Grid``: https://flower.ai/docs/framework/ref-api/flwr.serverapp.Grid.html
"""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_FAILED = 1
SERVER_NODE = 1
_FIRST_CLIENT_NODE = 1000


def node_of(client: int) -> int:
    """The node id of a client."""
    return _FIRST_CLIENT_NODE + client


def client_of(node: int) -> int:
    """The client behind a node id."""
    return node - _FIRST_CLIENT_NODE


@dataclass(kw_only=True)
class Traffic:
    """Bytes and messages since the last ``reset``; payload bytes, without protocol framing."""

    bytes_down: int = 0
    bytes_up: int = 0
    messages: int = 0

    def reset(self) -> Traffic:
        """Give what was counted and start again at zero."""
        counted = Traffic(bytes_down=self.bytes_down, bytes_up=self.bytes_up, messages=self.messages)
        self.bytes_down = self.bytes_up = self.messages = 0
        return counted


def payload_bytes(content: RecordDict) -> int:
    """Bytes of arrays, configuration and metrics in a message's content."""
    size = 0
    for record in content.array_records.values():
        size += sum(len(array.data) for array in record.values())
    for config in content.config_records.values():
        size += sum(len(value) if isinstance(value, (str, bytes)) else 8 for value in config.values())
    for metrics in content.metric_records.values():
        size += 8 * len(metrics)
    return size


class InProcessGrid(Grid):
    """A Grid whose nodes are the clients of the current roster.

    ``serialise`` sends every message through its protobuf bytes and back, as a network would; results
    must not change by it.
    """

    def __init__(self, app: ClientApp, *, serialise: bool = False) -> None:
        self.app = app
        self.serialise = serialise
        self.roster: tuple[int, ...] = ()
        self.traffic = Traffic()
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Nothing to set: one process is one run."""

    @property
    def run(self) -> Run:
        raise NotImplementedError("an in-process grid has no SuperLink run")

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages in order of node id and give the replies in that order.

        ``timeout`` is met trivially: clients run one after another in this process.
        """
        ordered: Sequence[Message] = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return [self._deliver(message) for message in ordered]

    def _deliver(self, message: Message) -> Message:
        self.traffic.messages += 1
        self.traffic.bytes_down += payload_bytes(message.content)
        asked = _through_bytes(message) if self.serialise else message
        node = message.metadata.dst_node_id
        try:
            reply = self.app(asked, self._context(node))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({last.name}:{last.lineno})"
            return Message(Error(code=CLIENT_FAILED, reason=reason), reply_to=message)
        reply = _through_bytes(reply) if self.serialise else reply
        if reply.has_content():
            self.traffic.bytes_up += payload_bytes(reply.content)
        return reply

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=1,
                node_id=node,
                node_config={"client": client_of(node)},
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node]


def _through_bytes(message: Message) -> Message:
    """The message as the other side would see it: protobuf bytes, parsed again."""
    data = message_to_proto(message).SerializeToString()
    return message_from_proto(ProtoMessage.FromString(data))
