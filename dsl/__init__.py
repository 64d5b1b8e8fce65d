"""The language: source text in, checked typed program out; the reference meaning of every op.

In a program file ``from vortexlab.dsl import *`` brings the words of the language, for editors alone: a program is
read as text by `parse` and never run.
"""

from vortexlab.dsl import surface as _surface
from vortexlab.dsl.parser import check, load, parse
from vortexlab.dsl.surface import *  # noqa: F403

__all__ = [*_surface.WORDS]
