"""Vortex: sparse attention patterns over a paged KV cache, written, searched, measured and deployed.

Importing this package is cheap: it loads no other module, since every subpackage import passes through here.
"""

import os.path as _paths

__version__ = "0.1.0"

# An installation has the subpackages inside this folder, a checkout has them beside it. With a checkout as the current
# directory `python -m vortexlab...` comes here, so it works on a host where nothing was installed.
_home = _paths.dirname(_paths.dirname(_paths.abspath(__file__)))
if all(_paths.exists(_paths.join(_home, name)) for name in ("pyproject.toml", "setup.py", "dsl", "kernels")):
    __path__.append(_home)
