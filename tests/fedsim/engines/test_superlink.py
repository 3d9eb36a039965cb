"""The SuperLink's Control API: who may submit and register, and what is said when it does not answer."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from fedsim.engines.control import Control
from fedsim.engines.credentials import write_node_key
from fedsim.engines.deployment import APP, HOST, _environment, _start_superlink
from fedsim.engines.errors import EngineError
from fedsim.engines.processes import Processes, free_ports
from fedsim.engines.superlink import ACCESS_TOKEN_KEY, TokenPlugin


@pytest.mark.parametrize(
    ("metadata", "admitted"),
    [
        ([(ACCESS_TOKEN_KEY, "secret")], True),
        ([(ACCESS_TOKEN_KEY, b"secret")], True),
        ([], False),
        ([(ACCESS_TOKEN_KEY, "")], False),
        ([(ACCESS_TOKEN_KEY, "secreT")], False),
        ([("another", "secret")], False),
        ([(ACCESS_TOKEN_KEY, "secret"), (ACCESS_TOKEN_KEY, "guess")], False),
    ],
)
def test_the_token_and_nothing_else_admits(metadata, admitted: bool) -> None:
    found, account = TokenPlugin("secret").validate_tokens_in_metadata(metadata)
    assert found == admitted
    assert (account is not None) == admitted


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TokenPlugin("")


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Processes, str, Path, str]]:
    """A SuperLink that runs: its programs, address, CA and token."""
    folder = tmp_path_factory.mktemp("superlink")
    with Processes(folder / "logs", _environment(folder)) as processes:
        (port,) = free_ports(1)
        token = _start_superlink(processes, folder, port)
        yield processes, f"{HOST}:{port}", folder / "ca.pem", token


def make_app(folder: Path) -> Path:
    (folder / "federation").mkdir()
    for name in ("__init__", "server", "client"):
        (folder / "federation" / f"{name}.py").touch()
    (folder / "pyproject.toml").write_text(APP)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("token", ["x", "0" * 64])
def test_whoever_lacks_the_token_neither_submits_nor_registers(superlink, tmp_path: Path, token: str) -> None:
    _, address, root, _ = superlink
    write_node_key(tmp_path)
    with closing(Control(address, root=root, token=token)) as control:
        with pytest.raises(EngineError, match="refuses to register a SuperNode: HTTP 401"):
            control.register(tmp_path / "key.pub")
        with pytest.raises(EngineError, match="refuses to start the run: HTTP 401"):
            control.start(make_app(tmp_path), {"run": "x", "relay": "x", "nodes": "{}"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["start-run", "register-node", "list-runs", "list-nodes", "stop-run", "unregister-node", "stream-logs"],
)
def test_no_request_without_a_token_is_answered(superlink, path: str) -> None:
    """Not even one from a TLS client that verifies nothing."""
    _, address, _, _ = superlink
    kind = {"content-type": "application/x-protobuf"}
    told = httpx.post(f"https://{address}/v1/control/{path}", content=b"", headers=kind, verify=False)
    assert told.status_code == 401


@pytest.mark.slow
def test_nodes_get_ids_of_their_own_and_runs_a_status(superlink, tmp_path: Path) -> None:
    processes, address, root, token = superlink
    with closing(Control(address, root=root, token=token)) as control:
        ids = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            write_node_key(tmp_path / name)
            ids.append(control.register(tmp_path / name / "key.pub"))
        assert len(set(ids)) == 2
        with pytest.raises(EngineError, match="refuses to register"):  # a key that is taken
            control.register(tmp_path / "a" / "key.pub")
        (tmp_path / "app").mkdir()
        run = control.start(make_app(tmp_path / "app"), {"run": "x", "relay": "y", "nodes": "{}"})
        assert control.finished(run) in (None, "failed")  # its ServerApp is empty
        with pytest.raises(EngineError, match="refuses to say how the run goes"):
            control.finished(run + 1)
        processes.stop()
        with pytest.raises(EngineError, match="was to say how the run goes and did not answer"):
            control.finished(run)
