"""Ray on this machine alone: its servers listen on the loopback interface and take calls that bring a token.

By default Ray listens on every interface, and whoever reaches it runs code. A cluster that the scenario or
``RAY_ADDRESS`` names is somebody's own to protect: nothing is changed for it.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from fedsim.scenario.execution import RayConfig


@contextmanager
def on_loopback(config: RayConfig) -> Iterator[None]:
    """Whatever Ray starts inside listens on 127.0.0.1 only; a mode or token of the user's own is kept.

    Ray takes 127.0.0.1 for its address where clusters are switched off, and then binds nothing else. There is
    no token where this process imported Ray before the first such run.
    """
    if config.address is not None or "RAY_ADDRESS" in os.environ:
        yield
        return
    wanted = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if "ray" not in sys.modules or _token.cache_info().currsize:  # Ray reads its mode when first imported
        wanted["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")
        wanted["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN", _token())
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    constants = importlib.import_module("ray._private.ray_constants")
    clusters = constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was first imported
    vars(constants)["ENABLE_RAY_CLUSTER"] = False
    try:
        yield
    finally:
        vars(constants)["ENABLE_RAY_CLUSTER"] = clusters
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _token() -> str:
    """One token a process, since Ray reads it once; 32 random bytes in hexadecimal."""
    return secrets.token_hex(32)
