#!/usr/bin/env bash
# Install what quantised models need into an environment that already has this package: bitsandbytes (int8, nf4),
# compressed-tensors, and gptqmodel with optimum and triton (GPTQ, AWQ). Usage: scripts/install_quantization.sh [PYTHON]
#
# gptqmodel has no wheels. It looks for torch and setuptools while it is built, hence --no-build-isolation; without a GPU it
# must be told not to build CUDA kernels.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
if ! command -v nvidia-smi >/dev/null; then
    export BUILD_CUDA_EXT=0
fi
"$python" -m pip install --quiet -c constraints.txt "setuptools>=77"
"$python" -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[int8,gptq,awq,compressed]"
