"""The language: source text in, checked typed program out; the reference meaning of every op.

In a program file ``from vortexlab.dsl import *`` brings the words of the language, for editors alone: a program is
read as text by `parse` and never run.
"""

from vortexlab.dsl import surface as _surface
from vortexlab.dsl.canonical import canonical_hash as canonical_hash
from vortexlab.dsl.canonical import distance as distance
from vortexlab.dsl.canonical import structure_hash as structure_hash
from vortexlab.dsl.parser import check as check
from vortexlab.dsl.parser import load as load
from vortexlab.dsl.parser import parse as parse
from vortexlab.dsl.printer import to_source as to_source
from vortexlab.dsl.surface import *  # noqa: F403

__all__ = [*_surface.WORDS]
