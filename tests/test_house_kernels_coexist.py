"""Hugging Face's `kernels` and ours live together, also with the repository as the current directory.

transformers imports the distribution named `kernels` when it finds one in its accepted range. Our folder of the same
name must neither shadow it (with the repository first on the path) nor be taken for it (when none is installed).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The names that transformers imports from the package, as far as `import transformers` and its kernel hub need them.
STAND_IN = """
__version__ = {version!r}
HUGGING_FACE = True
class _Anything:
    def __init__(self, *args, **kwargs): pass
class Mode:
    INFERENCE = TRAINING = TORCH_COMPILE = 1
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return _Anything if name[0].isupper() else lambda *args, **kwargs: (lambda target: target)
"""

PROBE = """
import sys
assert sys.path[0] == "", sys.path
import transformers, vortexlab.kernels.cache
from transformers.integrations import hub_kernels
from transformers.models.qwen3 import modeling_qwen3
from transformers.utils.import_utils import is_kernels_available
ours = vortexlab.kernels.cache.__name__
print(is_kernels_available(), getattr(sys.modules.get("kernels"), "HUGGING_FACE", False), ours)
"""


def accepted_version() -> str:
    from transformers.utils import import_utils

    return import_utils.KERNELS_MIN_VERSION


def install_stand_in(site: Path) -> Path:
    """A distribution `kernels` as transformers looks for it: package, metadata, an accepted version."""
    version = accepted_version()
    package, info = site / "kernels", site / f"kernels-{version}.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(STAND_IN.format(version=version), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n", encoding="utf-8")
    (info / "RECORD").write_text("kernels/__init__.py,,\n", encoding="utf-8")
    (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    return site


def probe(directory: Path, *path: Path, code: str = PROBE) -> subprocess.CompletedProcess[str]:
    """Runs `code` with `directory` as the current one, first on sys.path as always with `python -c`."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_theirs_is_used_and_ours_works_from_the_repository(repo_root: Path, tmp_path: Path) -> None:
    result = probe(repo_root, install_stand_in(tmp_path / "site"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "True", "vortexlab.kernels.cache"]


def test_without_theirs_our_folder_is_not_taken_for_it(repo_root: Path) -> None:
    code = "import importlib.metadata as m\n" + PROBE
    result = probe(repo_root, code=code)
    assert result.returncode == 0, result.stderr
    available, theirs, ours = result.stdout.split()
    assert available == theirs, "transformers believes that a `kernels` is there, and it is not Hugging Face's"
    assert ours == "vortexlab.kernels.cache"


@pytest.mark.parametrize("init", [True, False])
def test_the_probe_notices_a_package_that_shadows_theirs(tmp_path: Path, init: bool) -> None:
    """The reason why `kernels/` has no __init__.py: with one, `import transformers` fails from the repository."""
    checkout = tmp_path / "checkout"
    (checkout / "kernels").mkdir(parents=True)
    (checkout / "kernels" / "cache.py").write_text("")
    if init:
        (checkout / "kernels" / "__init__.py").write_text("")
    result = probe(checkout, install_stand_in(tmp_path / "site"))
    assert (result.returncode != 0) == init, result.stderr


def test_our_folder_is_no_regular_package(repo_root: Path) -> None:
    assert not (repo_root / "kernels" / "__init__.py").exists()
