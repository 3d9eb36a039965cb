"""Ray on one machine: where its servers listen, and what is left alone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.engines.loopback import on_loopback
from fedsim.scenario.execution import RayConfig

LISTENING = """
import sys
from pathlib import Path
from contextlib import nullcontext
from fedsim.engines.loopback import on_loopback
from fedsim.scenario.execution import RayConfig

def addresses():
    # Local addresses, in hexadecimal, of sockets in the state LISTEN that processes of this session hold.
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    lines = [line for table in tables for line in table.splitlines()[1:]]
    rows = [line.split() for line in lines]
    open_ = {f"socket:[{row[9]}]": row[1].split(":")[0] for row in rows if row[3] == "0A"}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if sys.argv[2].encode() not in (place / "environ").read_bytes():
                continue
            held = {str(one.readlink()) for one in (place / "fd").iterdir()}
        except OSError:
            continue
        yield from (open_[name] for name in held & open_.keys())

with on_loopback(RayConfig()) if sys.argv[1] == "yes" else nullcontext():
    import ray
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.get(ray.remote(lambda: None).remote())
    print(*sorted(set(addresses())))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening(guarded: str, mark: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, guarded, mark],
        env=os.environ | {"FEDSIM_TEST": mark},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into /proc")
def test_ray_listens_on_loopback_alone(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    assert listening("no", f"{tmp_path}/no") - LOOPBACK, "by itself Ray listens on other interfaces"
    guarded = listening("yes", f"{tmp_path}/yes")
    assert guarded
    assert guarded <= LOOPBACK


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379"])
def test_a_cluster_that_is_named_is_left_as_it_is(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with on_loopback(RayConfig(address=address)):
        assert dict(os.environ) == before
    monkeypatch.setenv("RAY_ADDRESS", address)
    with on_loopback(RayConfig()):
        assert "RAY_AUTH_TOKEN" not in os.environ


IMPORTED = """
import os, sys
if sys.argv[1] == "before":
    import ray
from fedsim.engines.loopback import on_loopback
from fedsim.scenario.execution import RayConfig
names = ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"]
before = [os.environ.get(name) for name in names]
for _ in range(2):
    with on_loopback(RayConfig()):
        print(os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN"))
    assert [os.environ.get(name) for name in names] == before
"""


@pytest.mark.parametrize("own", [{}, {"RAY_AUTH_TOKEN": "own"}])
@pytest.mark.parametrize("imported", ["before", "after"])
def test_the_environment_is_put_back_and_a_token_is_ones_own(imported: str, own: dict[str, str]) -> None:
    """One token a process, since Ray reads it once; none where Ray had read that there is none."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", IMPORTED, imported]
    done = subprocess.run(command, env=clean | own, capture_output=True, text=True, check=True)
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first == second
    if imported == "before":
        assert first[0] == "None"
    else:
        assert first[0] == "token"
        assert first[1] == own.get("RAY_AUTH_TOKEN", first[1])
        assert own or len(first[1]) == 64
