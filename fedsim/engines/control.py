"""What a run asks of its SuperLink through the Control API: nodes registered, an app started, how that goes.

In place of the ``flwr`` command, which brings no token of ours and does not say which id a node was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from fedsim.engines.errors import EngineError

FINISHED = "finished"
"""What Flower calls a run that is over, however it ended."""


class _Bearer:
    """Brings the token with every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["Authorization"] = f"Bearer {self._token}"
        return call_next(context)


class Control:
    """The Control API of the SuperLink at ``address`` (``host:port``), over TLS under the CA in ``root``.

    Every method raises `EngineError` when the SuperLink does not answer or refuses.
    """

    def __init__(self, address: str, *, root: Path, token: str) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=root.read_bytes(),
            interceptors=[_Bearer(token)],
        )

    def register(self, public_key: Path) -> int:
        """Admit the node whose OpenSSH public key a file holds; the id by which messages reach it alone."""
        key = load_ssh_public_key(public_key.read_bytes())
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with _told("register a SuperNode"):
            reply = self._client.RegisterNode(RegisterNodeRequest(public_key=pem))
        if not reply.node_id:
            raise EngineError("the SuperLink did not register a SuperNode")
        return int(reply.node_id)

    def start(self, app: Path, config: Mapping[str, str]) -> int:
        """Start the Flower app in a folder under a run configuration; the run's id."""
        built = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(hashlib.sha256(built).hexdigest(), built, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        with _told("start the run"):
            reply = self._client.StartRun(request)
        if not reply.HasField("run_id"):
            raise EngineError("the SuperLink did not start the run")
        return int(reply.run_id)

    def finished(self, run: int) -> str | None:
        """How a run ended (``completed``, ``failed``, ``stopped``), or None while it goes on."""
        with _told("say how the run goes"):
            listed = dict(self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict)
        if run not in listed:
            raise EngineError("the SuperLink does not know the run any more")
        status = listed[run].status
        return str(status.sub_status) or FINISHED if status.status == FINISHED else None

    def close(self) -> None:
        """Close connections."""
        self._client.close()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever goes wrong on the way is one message."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise EngineError(f"the SuperLink refuses to {what}: HTTP {error.response.status_code}") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise EngineError(f"the SuperLink was to {what} and did not answer: {error}") from error
