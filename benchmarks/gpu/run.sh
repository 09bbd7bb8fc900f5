#!/bin/sh
# Runs the benchmark without pip and without network, on what was built for it:
#
#   sh benchmarks/gpu/run.sh --out results
#   sh benchmarks/gpu/run.sh build          only builds; `make gpu-site` does, for a GPU machine elsewhere
#
# build/gpu/site, the extension and links to the sources, and build/gpu/triton, Triton's cache, may be brought along from
# another machine with the same Python. What is missing, or of other C++ sources, is built: that needs cmake, a C++
# compiler and python3 (or $PYTHON) with torch and pybind11. Where there is nvcc the CUDA kernels are built too, or it ends
# with the reason; PENSTOCK_CUDA and PENSTOCK_CUDA_ARCHITECTURES as in cmake/cuda.cmake.
set -e
PATH=$PATH:/usr/local/cuda/bin
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(command -v "${PYTHON:-python3}")
build=$root/build/gpu
site=$build/site
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$build/triton}" PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$build" "$TRITON_CACHE_DIR"

sources() { (cd "$root" && find CMakeLists.txt cmake csrc -type f | LC_ALL=C sort | xargs cksum | cksum); }

fits() {
    [ "$(cat "$site/sources" 2>/dev/null)" = "$(sources)" ] &&
        "$python" -c 'import importlib.util as u, sys; u.module_from_spec(u.spec_from_file_location("_native", sys.argv[1]))' \
            "$site"/penstock/_native.*.so 2>"$build/build.log"
}

configure() {
    cmake -S "$root" -B "$build/cmake" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" \
        -DPYTHON_EXECUTABLE="$python" -DPYBIND11_FINDPYTHON=ON -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
        -DPENSTOCK_CUDA="${PENSTOCK_CUDA:-AUTO}" >"$build/build.log"
}

build() {
    if [ -z "$PENSTOCK_CUDA" ] && command -v nvcc >/dev/null; then PENSTOCK_CUDA=ON; fi
    # what another cmake, generator or place has left does no good: then it begins again
    configure 2>/dev/null || { rm -rf "$build/cmake" && configure; } || return
    cmake --build "$build/cmake" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" >>"$build/build.log" || return
    rm -rf "$site"
    cmake --install "$build/cmake" --prefix "$site" >>"$build/build.log" || return
    sources >"$site/sources"
    git -C "$root" rev-parse --short=12 HEAD >"$site/commit" 2>/dev/null || true
}

if ! fits; then
    build || { tail -n 20 "$build/build.log" >&2; [ "$1" != build ] || exit 1; echo "without the extension: it was not built" >&2; }
fi
mkdir -p "$site/penstock"
# relative, so that they lead on where the folder is carried to
for folder in engine kernels benchmarks; do ln -sfn "../../../../$folder" "$site/penstock/$folder"; done
if [ "$1" = build ]; then exit; fi

git -C "$root" rev-parse HEAD >/dev/null 2>&1 || export PENSTOCK_COMMIT="${PENSTOCK_COMMIT:-$(cat "$site/commit" 2>/dev/null)}"
"$python" -m penstock.benchmarks.gpu.triton_cache adopt || true
exec "$python" -m penstock.benchmarks.gpu "$@"
