#!/bin/sh
# Builds penstock without pip and without network, then runs the benchmark on what was built:
#
#   sh benchmarks/gpu/run.sh --out results
#
# It needs cmake, a C++ compiler and python3 (or $PYTHON) with torch and pybind11. Where there is nvcc the CUDA kernels are
# built too, or it ends with the reason; PENSTOCK_CUDA and PENSTOCK_CUDA_ARCHITECTURES as in cmake/cuda.cmake.
# Where `pip install -e .` works, that does as well: then call `python -m penstock.benchmarks.gpu` by itself.
set -e
PATH=$PATH:/usr/local/cuda/bin
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(command -v "${PYTHON:-python3}")
build=$root/build/gpu
mkdir -p "$build"
if [ -z "$PENSTOCK_CUDA" ] && command -v nvcc >/dev/null; then PENSTOCK_CUDA=ON; fi
configure() {
    cmake -S "$root" -B "$build/cmake" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" \
        -DPYTHON_EXECUTABLE="$python" -DPYBIND11_FINDPYTHON=ON -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
        -DPENSTOCK_CUDA="${PENSTOCK_CUDA:-AUTO}" >"$build/build.log"
}
# what another cmake, generator or place has left does no good: then it begins again
configure 2>/dev/null || { rm -rf "$build/cmake" && configure; }
cmake --build "$build/cmake" --parallel "$(nproc)" >>"$build/build.log"
cmake --install "$build/cmake" --prefix "$build/site" >>"$build/build.log"
for folder in engine kernels benchmarks; do ln -sfn "$root/$folder" "$build/site/penstock/$folder"; done
PYTHONPATH="$build/site${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m penstock.benchmarks.gpu "$@"
