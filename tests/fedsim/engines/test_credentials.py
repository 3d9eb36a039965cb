"""Keys and certificates, read back by the libraries that will use them."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedsim.engines.credentials import write_node_key, write_tls


def handshake(folder: Path, trusted: Path, name: str) -> None:
    """One TLS connection to a server with the folder's certificate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cafile=trusted)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def test_the_server_is_who_the_ca_says(tmp_path: Path) -> None:
    write_tls(tmp_path)
    handshake(tmp_path, tmp_path / "ca.pem", "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, tmp_path / "ca.pem", "127.0.0.2")


def test_another_ca_is_not_trusted(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        write_tls(tmp_path / name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "ours", tmp_path / "theirs" / "ca.pem", "127.0.0.1")


def test_node_keys_are_p384_in_the_form_flower_reads(tmp_path: Path) -> None:
    write_node_key(tmp_path)
    private = load_ssh_private_key((tmp_path / "key").read_bytes(), password=None)
    public = load_ssh_public_key((tmp_path / "key.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    write_tls(tmp_path)
    write_node_key(tmp_path)
    for name in ("server.key", "key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {
        "ca.pem",
        "server.pem",
        "server.key",
        "key",
        "key.pub",
    }
