"""Faults planted in what the torch executor does for memory, output, prefill and the newer ops: its tests find each.

A fault is one change of text in a copy of `kernels/`; a process of its own runs the tests named beside it on that copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPS, MEMORY, PREFILL = "test_torch_ops.py", "test_torch_memory.py", "test_torch_prefill.py"
#: What goes wrong -> (file, text as it is, text with the fault, tests that find it).
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "padding shifts into a row": (
        "torch_pages.py", 'return kernel([masked(value, live, float(node.attrs["fill"])), *others])',
        "return kernel([value, *others])", OPS,
    ),
    "padding sorts into a row": (
        "torch_pages.py", "return kernel([masked(value, live, _end(kind, not down))])", "return kernel([value])", OPS,
    ),
    "a window leans the other way": ("torch_shapes.py", "before[dim], after[dim] = size // 2, size - 1 - size // 2",
        "after[dim], before[dim] = size // 2, size - 1 - size // 2", OPS),
    "an index below 0 wraps around": ("torch_shapes.py", "inside = (i >= 0) & (i < x.shape[-1])",
        "inside = (i < x.shape[-1])", OPS),
    "fp8 does not saturate": ("precision.py", "if dtype in LARGEST and x.dtype != dtype:", "if False:", OPS),
    "a parameter of the wrong KV head": (
        "compiled.py", "parameter(self.program, name, self.static, kv) for kv in heads",
        "parameter(self.program, name, self.static, 0) for kv in heads", OPS,
    ),
    "new pages remember what padding held": ("memory.py", "torch.arange(pages, device=self.device) < written[:, None]",
        "torch.arange(pages, device=self.device) < written[:, None] + 1", MEMORY),
    "a memory's period is the wrong one": ("memory.py", "(length - 1) % every == 0", "length % every == 0", MEMORY),
    "the own page is kept": ("torch_step.py", "found = inputs[0] & pad(self.live[:, :, None], (0, 1))",
        "found = inputs[0]", MEMORY),
    "a row that is not due takes the new set": (
        "torch_step.py", "return torch.where(afresh[:, None, None, None], found, before)",
        "return found", MEMORY,
    ),
    "a new request inherits a memory": (
        "memory.py", "            self._started[slot] = False", "            pass", MEMORY,
    ),
    "rows read each other's slots": (
        "memory.py", "list(range(batch)) if self.slots is None else self.slots", "list(range(batch))", MEMORY,
    ),
    "a beginning without its axes": (
        "memory.py", ".expand(rows, 1, pages, *self._shapes[name])",
        ".expand(rows, 1, pages, *[1 for _ in self._shapes[name]])", MEMORY,
    ),
    "a layer reads its own memory of the last step": (
        "memory.py", "        if stamp != self.stamp:", "        if False:", MEMORY,
    ),
    "the own page is weighted": ("torch_output.py", "torch.where(candidate & ~own, given, 0.0)", "given", MEMORY),
    "entries of pages that are no candidates": ("torch_output.py", "allowed = live[:, None, None, None]\n",
        "allowed = torch.ones_like(live[:, None, None, None])\n", MEMORY),
    "two softmaxes added": ("torch_output.py", "tokens * shares[0][..., None] + entries * shares[1][..., None]",
        "tokens * 0.5 + entries * 0.5", MEMORY),
    "attended pages missing from the lists": ("torch_executor.py", "for index in {program.output, *form.attended}:",
        "for index in {program.output}:", MEMORY),
    "prefill looks ahead": ("torch_attend.py", 'place[:, None] > seen[part, :, None], float("-inf")',
        'place[:, None] > seen[part, :, None] + 1, float("-inf")', PREFILL),
    "a block sees the page before it as a candidate too late": ("torch_prefill.py", "lengths=first + 1,",
        "lengths=(first + 1 - form.program.page_size).clamp(min=1),", PREFILL),
    "queries attend with the pooled query": ("torch_prefill.py", "queries = own.transpose(1, 2).flatten(0, 1)",
        "queries = pooled.repeat_interleave(each, 0)", PREFILL),
    "pages that a block touches are left out": ("torch_prefill.py", "(pages <= ((stops - 1) // page)[:, None])",
        "(pages <= (first // page)[:, None])", PREFILL),
    "prefill goes on from the steps' memory": ("memory.py", "            elif static.prefill:\n                turn",
        "            elif static.prefill and static.layer == 0:\n                turn", PREFILL),
    "values of a latent cache begin with the rotary part": ("torch_attend.py",
        "values: Tensor | None = keys[..., : cache.value_dim]", "values: Tensor | None = keys[..., -cache.value_dim :]",
        PREFILL),
    "scales forgotten": ("torch_step.py", "return found if scale is None else", "return found if True else", PREFILL),
    "bounds in fp8 taken as ordered": ("lowering.py", 'if self.own_scales and "field" in', 'if False and "field" in',
        PREFILL),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, tmp_path: Path, repo_root: Path) -> None:
    file, text, wrong, tests = FAULTS[fault]
    package = tmp_path / "vortexlab"
    package.mkdir()
    for room in ("dsl", "search_spaces"):
        (package / room).symlink_to(repo_root / room)
    (package / "__init__.py").touch()
    shutil.copytree(repo_root / "kernels", package / "kernels")
    (tmp_path / "tests").mkdir()
    for name in ("step_cases.py", tests):
        shutil.copy(repo_root / "tests" / name, tmp_path / "tests" / name)
    source = (package / "kernels" / file).read_text()
    assert source.count(text) == 1, f"kernels/{file} no longer holds once: {text}"
    (package / "kernels" / file).write_text(source.replace(text, wrong))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{tests}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 1 and "1 failed" in run.stdout, f"not found\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
