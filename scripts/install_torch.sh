#!/usr/bin/env bash
# Usage: install_torch.sh PYTHON CONSTRAINTS VERSION TRITON
# Installs the CUDA build of torch where a GPU answers and the CPU build elsewhere; a torch that is already there stays
# (so a build of your own, for an older driver or for ROCm, can be installed first).
set -euo pipefail
python=$1 constraints=$2 version=$3 triton=$4
pip=("$python" -m pip install --quiet --constraint "$constraints")

"$python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null && exit 0
if nvidia-smi -L >/dev/null 2>&1; then
    "${pip[@]}" "torch==$version,!=$version+cpu"  # its own metadata names the triton that it needs
elif [ "$(uname -s)" != Linux ]; then
    "${pip[@]}" "torch==$version"
else
    # First from the package sources this machine is set up with, then from PyTorch's own index of CPU builds.
    "${pip[@]}" --only-binary=torch "torch==$version+cpu" "triton==$triton" 2>/dev/null ||
        "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu" "triton==$triton"
fi
