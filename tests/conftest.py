"""Settings that all tests share. They are made before torch or Hugging Face code is first imported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


#: Kinds of tests that a run may leave out, and what runs them.
LEFT_OUT = {
    "slow": "make test-long", "cluster": "make test-extras", "browser": "make test-extras",
    "dashboard": "make test-extras", "vllm": "make test-vllm", "gpu": "make test-gpu",
}  # fmt: skip
_left_out: Counter[str] = Counter()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        names = {mark.name for mark in item.iter_markers()}
        _left_out.update(name for name in LEFT_OUT if name in names)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist tells its controller, which collects nothing itself."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which need not be there
def pytest_testnodedown(node: Any) -> None:
    _left_out.update({} if _left_out else node.workeroutput.get("left_out", {}))  # every process collects all


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts = [f"{count} {name} ({LEFT_OUT[name]})" for name, count in sorted(_left_out.items())]
    if counts:
        terminalreporter.write_line(f"left out: {', '.join(counts)}")
