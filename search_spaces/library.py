"""The published programs, one file each in `programs/`. They are read as text and never imported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program

_FOLDER = Path(__file__).parent / "programs"

#: Names of the seeds in the order in which a campaign tries them: the baseline, static patterns, scored ones.
SEEDS = (
    "dense", "sink_window", "bigbird", "strided", "centroid", "quest", "gqa_quest", "top_p", "subpage_quest",
    "value_energy",
)  # fmt: skip

#: Every published program by what it is for: decode without learned constants, sparse prefill, latent attention, and
#: programs that read learned parameters from a file.
LIBRARY: Mapping[str, tuple[str, ...]] = {
    "decode": (
        *SEEDS, "block_topk", "block_softmax", "centered_block", "value_centroid", "masked_quest", "quest_heads",
        "quest_shared", "lserve", "lserve_centroid", "running_average", "h2o_blocks", "gqa_h2o_blocks", "h2o_tokens",
        "gqa_h2o_tokens", "snapkv", "tidal", "twilight", "arkvale", "rocketkv", "vattention", "retroinfer",
    ),
    "prefill": (
        "a_shape", "local_global", "bigbird_prefill", "block_sparse", "vertical", "flexprefill", "sparge", "moba",
        "infllm_v2",
    ),
    "mla": ("mla_block", "mla_subpage", "mla_rope_unaware", "mla_rope_unaware_subpage", "mla_rope_weighted"),
    "learned": (
        "double_sparsity", "loki", "seer_attention", "seer_decode", "streaming_heads", "nsa", "dsa", "mla_learned",
    ),
}  # fmt: skip

#: All names, group by group.
NAMES = tuple(name for group in LIBRARY.values() for name in group)


def seeds() -> dict[str, str]:
    """The source text of every seed by name."""
    return {name: source(name) for name in SEEDS}


def source(name: str) -> str:
    """The source text of one published program. Raises `VortexError` for an unknown name."""
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {close[0]}?" if close else f"the programs are {', '.join(NAMES)}"
        raise VortexError(f"there is no published program {name!r}; {hint}")
    return (_FOLDER / f"{name}.py").read_text(encoding="utf-8")


def load(name: str) -> Program:
    """One published program, its knobs unbound. Raises `VortexError` for an unknown name."""
    return parse(source(name))
