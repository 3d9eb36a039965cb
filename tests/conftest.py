"""One torch thread, quiet libraries, and a base for tests that need a model but not knowledge."""

import gc
import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import flwr  # noqa: F401  (sets up its logger on import, so its level is set afterwards)
import pytest
import torch
import transformers
from hypothesis import settings

from tests.world import save_base

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
torch.set_num_threads(1)
logging.getLogger("flwr").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()


def pytest_collection_finish() -> None:
    """Spare what was imported the garbage collector, which some strategies of Flower call for each update."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory):
    """Directory of a random Llama with a word tokenizer."""
    return save_base(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_base(tmp_path_factory):
    """Directory of a random GPT-2, whose layers are Conv1D, with the same tokenizer."""
    return save_base(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="session", params=["llama", "qwen2", "mistral", "gpt2"])
def any_base(request, tmp_path_factory):
    """Directory of a random base, of each family in turn."""
    return save_base(tmp_path_factory.mktemp(request.param), request.param)
