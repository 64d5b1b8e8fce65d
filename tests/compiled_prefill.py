"""What the prefill attention kernel of a program compiles to; no GPU needed.

Triton must not have been told to interpret when it is first imported, so tests start this as a process of its own: the
job as JSON in the first argument, the result as the last line of the output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def compiled(target: str, page: int, block: int, heads: tuple[int, int, int], per_head: bool = False) -> dict[str, Any]:
    """The kernel of a program with such pages and blocks of queries in bf16. `heads`: KV heads, group, channels.

    `ptx` (PTX or AMD's assembly), the fields of `aot.resources`, and `loop`: the products (``p``) and the waits for
    them (``w``) in the machine code of the first loop, on NVIDIA's targets.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_DEFAULT_FP_FUSION": "1"}
    job = json.dumps([target, page, block, heads, per_head])
    done = subprocess.run(
        [sys.executable, __file__, job], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import triton

    from vortexlab.dsl import parse
    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.gpu.aot import TARGETS, compile_job, jobs, resources
    from vortexlab.kernels.gpu.codegen import generate_phases

    target, page, block, (kv_heads, group, head_dim), per_head = json.loads(sys.argv[1])
    program = parse(
        f"@program(page={page}, block={block})\nclass P:\n    def summarize(k): return dict(c=k.mean(token))\n"
        "    def pool(q): return q.mean(query)\n"
        f"    def score(q, s): return dot(q, s.c, channel){'' if per_head else '.max(head)'}\n"
        "    def select(score): return topk(score, 4)\n"
    ).bind()
    blocks = generate_phases(program, Static(kv_heads, group, head_dim, head_dim**-0.5), "bf16")[1]
    job = next(job for job in jobs(blocks, "bf16", target) if job.name == "attend_prompt")
    found = compile_job(job, blocks, "bf16", TARGETS[target])
    answer = {**resources(found, TARGETS[target]), "ptx": found.asm.get("ptx") or found.asm["amdgcn"], "loop": ""}
    if "cubin" in found.asm:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(found.asm["cubin"])
            file.flush()
            code = subprocess.run([str(tool), file.name], capture_output=True, text=True, check=False).stdout
        parts = re.findall(r"HGMMA|WARPGROUP\.DEPBAR|\bBRA\b", code)
        text = "".join({"H": "p", "W": "w", "B": "|"}[part[0]] for part in parts)
        answer["loop"] = next((part for part in text.split("|") if "p" in part), "")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
