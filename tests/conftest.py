"""Settings that all tests share. They are made before torch or Hugging Face code is first imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread per test process: the processes of pytest-xdist share the cores, and results do not depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests read nothing from the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from hypothesis import settings

settings.register_profile("vortex", derandomize=True, deadline=None)
settings.load_profile("vortex")


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Samples that tests make are kept apart from the user's."""
    os.environ["VORTEX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout, which holds the folders of the packages."""
    return Path(__file__).resolve().parents[1]
