"""Whether the Hugging Face hub can be reached, found out in seconds instead of minutes of retries."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from fedsim.data.config import DataChoice, HfData, MuseData, TofuData
from fedsim.model.assets import ASSETS
from fedsim.scenario.scenario import Scenario


def needs_hub(scenarios: Iterable[Scenario]) -> bool:
    """Whether a base model or a data set is named that is no folder here."""
    return any(
        not (Path(scenario.model.base).exists() or (ASSETS / scenario.model.base).is_dir())
        or _of_the_hub(scenario.data)
        for scenario in scenarios
    )


def _of_the_hub(data: DataChoice) -> bool:
    if isinstance(data, TofuData | MuseData):
        return data.hub is not None
    return isinstance(data, HfData) and data.name is not None and not Path(data.name).is_dir()


def go_offline_unless_reachable(scenarios: Iterable[Scenario], *, timeout_seconds: float = 3.0) -> None:
    """Tell Hugging Face's libraries to use their cache only when the hub does not answer.

    They read ``HF_HUB_OFFLINE`` when they are imported, so this comes before. A proxy may reach what
    this machine does not: with one nothing is assumed.
    """
    if urllib.request.getproxies() or not needs_hub(scenarios):
        return
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
        socket.create_connection((endpoint.hostname or "", port), timeout=timeout_seconds).close()
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"
