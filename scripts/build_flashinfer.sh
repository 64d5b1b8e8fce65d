#!/usr/bin/env bash
# Compiles the FlashInfer kernels that benchmarks/ compare with, for sm_90a, on a machine without a GPU, and packs them
# with FlashInfer itself for a GPU host without network: OUT/flashinfer.tar.gz.
#
#   scripts/build_flashinfer.sh PYTHON OUT WHEEL...                     here
#   mkdir -p SITE && tar -C SITE -xzf flashinfer.tar.gz                 there, and then
#   PYTHONPATH=SITE FLASHINFER_DISABLE_JIT=1 python3 ...
#
# With FLASHINFER_DISABLE_JIT a kernel that was not packed is an error at once, and not minutes of compiling.
# PYTHON: an interpreter that has torch (a CPU build will do), flashinfer-python 0.6.14 and apache-tvm-ffi.
# WHEEL: flashinfer-python, apache-tvm-ffi and tabulate, as the GPU host needs them. nvcc must be on the path, or
# CUDA_HOME set. CURAND_INCLUDE: the folder of cuRAND's headers, where the toolkit came without them (they are in the
# wheel nvidia-curand). Kernels that are there already are not compiled again.
set -euo pipefail
python=$1 out=$(mkdir -p "$2" && cd "$2" && pwd)
shift 2
here=$(cd "$(dirname "$0")" && pwd)

CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
export CUDA_HOME FLASHINFER_CUDA_ARCH_LIST=9.0a FLASHINFER_WORKSPACE_BASE=$out/build MAX_JOBS=${MAX_JOBS:-2}
# Kernels link to the driver's library, which a machine without a GPU lacks: an empty one of its name stands in.
mkdir -p "$out/build/stub"
echo | ${CXX:-c++} -shared -x c++ - -Wl,-soname,libcuda.so.1 -o "$out/build/stub/libcuda.so"
export FLASHINFER_EXTRA_CUDAFLAGS=${CURAND_INCLUDE:+-isystem $CURAND_INCLUDE}
export FLASHINFER_EXTRA_LDFLAGS="-L$out/build/stub -L$CUDA_HOME/lib"

PATH=$(dirname "$python"):$PATH "$python" "$here/build_flashinfer.py"

# FlashInfer loads what lies in its package's data/aot as it is: no ninja, no time stamps, no paths. What only compiling
# needs stays behind.
site=$out/site
rm -rf "$site" && mkdir -p "$site"
for wheel in "$@"; do "$python" -m zipfile -e "$wheel" "$site"; done
rm -rf "$site"/flashinfer/data/{cutlass,cccl,spdlog,include}
for library in "$out"/build/.cache/flashinfer/*/90a/cached_ops/*/*.so; do
    name=$(basename "$library" .so)
    install -Ds "$library" "$site/flashinfer/data/aot/$name/$name.so"
done
tar -C "$site" -czf "$out/flashinfer.tar.gz" .
ls -l "$out/flashinfer.tar.gz"
