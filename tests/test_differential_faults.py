"""Twenty faults planted in the torch executor, one at a time: the random comparison finds each of them.

A fault is one change of text in a copy of `kernels/`; a process of its own runs the comparison on that copy until it
finds a disagreement. When the executor's text changes, the fault is rewritten here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: What goes wrong -> (file, text as it is, text with the fault), and what finds it sooner than random programs do, with
#: the kind of inputs that it needs.
FAULTS: dict[str, tuple[str, ...]] = {
    "equal scores to the later page": (
        "torch_select.py",
        "keys.sub_(page if _earlier_first else -page)",
        "keys.sub_(-page)",
    ),
    "minus zero below plus zero": (
        "torch_select.py",
        "score = score.float() + 0.0",
        "score = score.float()",
        "programs",
        "--kind=zeros",
    ),
    "one page too many": ("torch_select.py", "count = count.clamp(0, keys", "count = (count + 1).clamp(0, keys"),
    "threshold reached is enough": ("torch_select.py", "(score > threshold)", "(score >= threshold)"),
    "mass without the bound": ("torch_select.py", "torch.minimum(count, most.clamp(min=0))", "count"),
    "mass of unscaled scores": ("torch_select.py", "score.double() * scale", "score.double()"),
    "hash without the position": ("torch_select.py", "h ^ position[:, None, None, None]", "h ^ 0 * page"),
    "window one page short": ("torch_select.py", "(pages > own - first)", "(pages > own + 1 - first)", "seeds"),
    "stride offset forgotten": ("torch_select.py", "== second % step", "== 0 * second % step"),
    "own page is the last complete one": (
        "torch_step.py",
        "self.own = (lengths - 1) // program.page_size",
        "self.own = (lengths // program.page_size - 1).clamp(min=0)",
    ),
    "padding takes part in page maxima": (
        "torch_pages.py",
        "return torch.where(live, value, value.new_full((), fill))",
        "return value",
    ),
    "mean over the longest row's pages": (
        "torch_pages.py",
        "live.sum(2).clamp(min=1).view",
        "live.sum(2).clamp(min=live.shape[2]).view",
    ),
    "among forgotten": ("torch_step.py", "if len(node.inputs) > fixed:", "if False:"),
    "complement past the own page": ("torch_step.py", "return (column <= own) & ~inputs[0]", "return ~inputs[0]"),
    "budgets of the first request for all": (
        "torch_executor.py",
        "exact=[form.scalars(length) for length in lengths]",
        "exact=[form.scalars(lengths[0]) for _ in lengths]",
    ),
    "summaries never rounded": (
        "precision.py",
        'return cache_dtype if program.summary_dtype == "kv" else TORCH_DTYPES[program.summary_dtype]',
        "return torch.float32",
    ),
    "completed pages are summarised too late": (
        "torch_executor.py",
        "rows = (lengths % self._page == 0)",
        "rows = (lengths % self._page == 2)",
    ),
    "page of several blocks known by its first": ("cache.py", "table[:, span - 1 :: span]", "table[:, ::span]"),
    "softmax scale left out": ("torch_attend.py", "weight.mul_(scale)", "weight.mul_(1.0)", "seeds"),
    "tokens past the end attended": (
        "torch_attend.py",
        'weight[:, :, least:].masked_fill_(late[:, None], float("-inf"))',
        "pass",
        "seeds",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, tmp_path: Path, repo_root: Path) -> None:
    file, text, wrong, *rest = FAULTS[fault]
    what, *options = rest or ["programs"]
    count = "20" if what == "seeds" else "400"
    package = tmp_path / "vortexlab"
    package.mkdir()
    for room in ("dsl", "search_spaces"):
        (package / room).symlink_to(repo_root / room)
    (package / "__init__.py").touch()
    shutil.copytree(repo_root / "kernels", package / "kernels")
    shutil.copytree(
        repo_root / "tests",
        tmp_path / "tests",
        ignore=lambda folder, names: [n for n in names if n.startswith("test_")],
    )
    source = (package / "kernels" / file).read_text()
    assert source.count(text) == 1, f"kernels/{file} no longer holds once: {text}"
    (package / "kernels" / file).write_text(source.replace(text, wrong))
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", what, *options, "--stop", "--first", "50000", "--count", count],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 1, f"not found\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
    assert "'disagreements'" in run.stdout, run.stderr[-2000:]
