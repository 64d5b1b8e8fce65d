#!/usr/bin/env bash
# Usage: link.sh PYTHON
# Links the packages into the environment. A strict editable install is a farm of links, one per file, so it has to be
# renewed when a file is added or removed; it is left alone while the list of files stays the same.
set -euo pipefail
python=$1
state=$(dirname "$(dirname "$python")")/.linked
rooms=(vortexlab dsl kernels evaluator search_spaces agent deploy)

exec 9>"$state.lock"
if command -v flock >/dev/null; then flock 9; fi
current=$({ cat setup.py pyproject.toml; find "${rooms[@]}" -name __pycache__ -prune -o -type f -print | LC_ALL=C sort; } | cksum)
if [ -e build/linked ] && [ -f "$state" ] && [ "$(cat "$state")" = "$current" ]; then exit 0; fi
"$python" -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=strict --editable .
ln -sfn "$(cd build && ls -td __editable__.vortexlab-* | head -1)" build/linked  # where mypy looks (pyproject.toml)
echo "$current" >"$state"
