"""The table of the published programs.

``python -m vortexlab.search_spaces.catalogue > docs/library.md`` writes it anew from the programs themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vortexlab.dsl.ir import Program
from vortexlab.search_spaces.library import LIBRARY, NAMES, load, source

#: Lines of Python of the same algorithm in Vortex, by our name. That of Quest is the figure its authors give; the
#: others were counted in its public source by `code_lines`' rule, signatures as they are broken there.
VORTEX_LINES: Mapping[str, int] = {
    "block_topk": 29, "block_softmax": 31, "quest": 37, "subpage_quest": 39, "lserve_centroid": 32, "masked_quest": 45,
    "centered_block": 35, "running_average": 39, "value_centroid": 25, "mla_block": 29, "mla_subpage": 32,
    "mla_rope_unaware": 38, "mla_rope_unaware_subpage": 41,
}  # fmt: skip

#: Programs with the structure of another one, and why they are published all the same.
TWINS: Mapping[str, tuple[str, str]] = {
    "mla_block": ("block_topk", "a latent key holds its rotary part, so plain block top-k is aware of RoPE"),
    "mla_subpage": ("lserve_centroid", "a latent key holds its rotary part, so plain sub-page top-k is aware of RoPE"),
}

_TITLES = {
    "decode": "Decode",
    "prefill": "Sparse prefill",
    "mla": "Latent attention (MLA)",
    "learned": "Learned parameters",
}

_INTRODUCTION = """# The published programs

{count} programs, one file each in `search_spaces/programs/`; `vortex check FILE` shows what one of them costs. Each
docstring has the formula, the source, and every deviation from it, which the tables repeat: most papers choose tokens
or evict, and a program chooses pages and never evicts. No figure of a paper is claimed for a program.

Every program is tested against an oracle in plain torch, written from the formula and using nothing of this project:
scores, pages and output, in decode and, where a program has it, in prefill (`tests/library_oracles.py`).

*Phase*: what runs sparsely. *State*: summaries of a page with their axes, and what is carried over steps or layers.
*Lines*: code lines of the file, without docstring, imports and blank lines; knobs, budget and forced pages included.

Exact slashes (MInference, FlexPrefill), antidiagonal probes (XAttention), clusters that are not contiguous pages
(ClusterKV, RetroInfer) and eviction of single tokens (H2O, SnapKV, the first stage of RocketKV) cannot be said.
"""

_AGAINST = """
## Lines against Vortex

Code lines of the same algorithm in Vortex (arXiv 2606.06453). Its authors count 37 for Quest, and 13 of JSON beside
them for budget and forced pages, which are in our file; the other counts are ours of its public source by the rule
above, signatures on as many lines as they have there, without the JSON. Algorithms not listed were not counted.

| program | here | Vortex |
|---|---|---|
"""


@dataclass(frozen=True)
class Entry:
    """One row: `summary` is the docstring's first line; `source` and `deviations` its paragraphs of these names."""

    name: str
    summary: str
    source: str
    deviations: str
    phase: str
    state: str
    lines: int


def code_lines(text: str) -> int:
    """Lines of a program's text without its docstring, imports, comments and blank lines."""
    body = re.sub(r'"""(?:.|\n)*?"""', "", text)
    lines = [line.strip() for line in body.split("\n")]
    return sum(bool(line) and not line.startswith(("from ", "import ", "#")) for line in lines)


def entry(name: str) -> Entry:
    program = load(name)
    paragraphs = re.split(r"\n\s*(?=Source:|Parameters:|Deviations(?: from \w+)?:)", program.doc)
    named = {}
    for paragraph in paragraphs[1:]:
        label, _, text = paragraph.partition(":")
        named[label.split()[0]] = " ".join(text.split())
    return Entry(
        name,
        program.doc.split("\n")[0],
        named.get("Source", ""),
        named.get("Deviations", ""),
        phase(program),
        state(program),
        code_lines(source(name)),
    )


def phase(program: Program) -> str:
    """What runs sparsely: decode, prefill, or both."""
    if program.pooled is None:
        return "decode"
    output = program.nodes[program.output]
    if output.op == "where":
        condition, _, otherwise = (program.nodes[i] for i in output.inputs)
        if condition.attrs.get("name") == "prefill" and otherwise.op == "everything":
            return "prefill"
    return "both"


def state(program: Program) -> str:
    """Summaries of a page with their axes, memories and reuse, in words."""
    parts = [
        f"{name} [{', '.join(program.nodes[node].type.axes)}]" for name, node in sorted(program.live_fields().items())
    ]
    parts += [f"{item.name} [{', '.join(item.type.axes)}] over {item.scope}s" for item in program.memories.values()]
    parts += [
        "selection over " + str(program.nodes[index].attrs["over"])
        for index in program.live()
        if program.nodes[index].op == "reuse"
    ]
    return "; ".join(parts) or "none"


def markdown() -> str:
    """The page `docs/library.md`."""
    text = _INTRODUCTION.format(count=len(NAMES))
    for group, names in LIBRARY.items():
        text += f"\n## {_TITLES[group]}\n\n| program | what it does | source | phase | state | lines | deviations |\n"
        text += "|---|---|---|---|---|---|---|\n"
        for name in names:
            row = entry(name)
            cells = (f"`{name}`", row.summary, row.source, row.phase, row.state, str(row.lines), row.deviations)
            text += "| " + " | ".join(cell.rstrip(".").replace("|", "\\|") for cell in cells) + " |\n"
    text += "\nThe same program under two names: " + "; ".join(
        f"`{name}` and `{other}` ({why})" for name, (other, why) in TWINS.items()
    )
    text += ".\n" + _AGAINST
    for name, lines in VORTEX_LINES.items():
        text += f"| `{name}` | {entry(name).lines} | {lines}{' + 13 of JSON' if name == 'quest' else ''} |\n"
    return text


if __name__ == "__main__":
    print(markdown(), end="")
