"""Vortex: sparse attention patterns over a paged KV cache, written, searched, measured and deployed.

Importing this package is cheap: it loads no other module, since every subpackage import passes through here. `search`
and `load_run` are loaded when they are first named.
"""

import os.path as _paths
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from vortexlab.api import load_run as load_run
    from vortexlab.api import search as search

__version__ = "0.1.0"
__all__ = ["__version__", "load_run", "search"]

# An installation has the subpackages inside this folder, a checkout has them beside it. With a checkout as the current
# directory `python -m vortexlab...` comes here, so it works on a host where nothing was installed.
_home = _paths.dirname(_paths.dirname(_paths.abspath(__file__)))
if all(_paths.exists(_paths.join(_home, name)) for name in ("pyproject.toml", "setup.py", "dsl", "kernels")):
    __path__.append(_home)


def __getattr__(name: str) -> object:
    if name in ("load_run", "search"):
        from vortexlab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
