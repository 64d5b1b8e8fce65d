"""The language: source text in, checked typed program out; the reference meaning of every op.

In a program file ``from vortexlab.dsl import *`` brings the words of the language, for editors alone: a program is
read as text by `parse` and never run. Importing this package is cheap: its names are loaded when they are first used.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from vortexlab.dsl.canonical import canonical_hash as canonical_hash
    from vortexlab.dsl.canonical import distance as distance
    from vortexlab.dsl.canonical import structure_hash as structure_hash
    from vortexlab.dsl.parser import check as check
    from vortexlab.dsl.parser import declared_knobs as declared_knobs
    from vortexlab.dsl.parser import load as load
    from vortexlab.dsl.parser import parse as parse
    from vortexlab.dsl.printer import to_source as to_source
    from vortexlab.dsl.surface import *  # noqa: F403

_HOMES = {
    "canonical_hash": "canonical", "distance": "canonical", "structure_hash": "canonical", "check": "parser",
    "declared_knobs": "parser", "load": "parser", "parse": "parser", "to_source": "printer",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "__all__" or not name.startswith("_"):
        surface = _import_module(f"{__name__}.surface")
        if name == "__all__":  # what `import *` brings
            return surface.WORDS
        if name in surface.WORDS:
            return getattr(surface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
