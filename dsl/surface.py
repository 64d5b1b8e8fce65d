"""The names that a program file imports, so that an editor knows them.

A program is read as text and never run: ``from vortexlab.dsl import *`` makes the file valid Python for editors and
type checkers, and every name here raises a `VortexError` that says so when somebody runs the file anyway.
"""

from __future__ import annotations

from typing import Any, NoReturn

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ops import OPS


class Word:
    """A word of the language. It has a meaning inside a program's text and none in running Python."""

    def __init__(self, name: str, doc: str):
        self._name = name
        self.__doc__ = doc

    def _refuse(self) -> NoReturn:
        raise VortexError(
            f"{self._name} is a word of the program language, and programs are read, not run; "
            "check the file with `vortex check FILE` or vortexlab.dsl.load(path)"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._refuse()

    def __invert__(self) -> Any:
        self._refuse()

    def __or__(self, other: Any) -> Any:
        self._refuse()

    __and__ = __sub__ = __ror__ = __rand__ = __rsub__ = __or__

    def __repr__(self) -> str:
        return f"<word of the program language: {self._name}>"


def _word(name: str, doc: str = "") -> Any:
    if not doc:
        doc = f"{OPS[name].signature}: {OPS[name].doc}"
    return Word(name, doc)


program = _word(
    "program", '@program(page=16, block=64, kv="auto", summaries="kv", seed=0): decorates the class of a program file'
)
knob = _word("knob", "knob.int, knob.float, knob.choice, knob.bool: a value that a search may vary")
param = _word("param", 'param("tensor", head, channel, rank=64): a learned constant of a safetensors file')
memory = _word("memory", "memory.step(page, init=0.0), memory.layer(pages): what `remember` hands on")

page = _word("page", "axis: the candidate pages, all complete pages before the own page")
head = _word("head", "axis: the query heads of one KV head")
query = _word("query", "axis: the queries of one block of prefill, in `pool`")
token = _word("token", "axis: the tokens of one page, in order")
channel = _word("channel", "axis: the channels of one head")
part = _word("part", "axis: the usual name for the runs that `split` cuts an axis into")
other = _word("other", "axis: the usual name for an axis renamed to stand beside its twin")
tokens = _word("tokens", "axis: the usual name for one that `merge` makes")
near = _word("near", "axis: the usual name for the neighbours that `window` makes")
rank = _word("rank", "axis: the usual name for the low rank of a learned projection")
pages = _word("pages", "in memory.step(pages): a set of pages; in `attend` and `remember`: the selected set")

exp, log, sqrt = _word("exp"), _word("log"), _word("sqrt")
relu, sigmoid, silu, tanh = _word("relu"), _word("sigmoid"), _word("silu"), _word("tanh")
floor, ceil = _word("floor"), _word("ceil")
maximum, minimum = _word("maximum"), _word("minimum")
clamp = _word("clamp", "clamp(x, low, high): minimum(maximum(x, low), high)")
where, dot, softmax, share = _word("where"), _word("dot"), _word("softmax"), _word("share")
index, concat, member = _word("index"), _word("concat"), _word("member")
reuse, attention = _word("reuse"), _word("attention")
everything, first, last, stride = _word("everything"), _word("first"), _word("last"), _word("stride")
random, topk, topp, above = _word("random"), _word("topk"), _word("topp"), _word("above")

#: What ``from vortexlab.dsl import *`` brings into a program file.
WORDS = tuple(name for name, value in globals().items() if isinstance(value, Word))
