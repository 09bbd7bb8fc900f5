// What the CUDA kernels take for granted, in little: asked of nvcc first, whose own words say best what it lacks.
#include <cuda_runtime.h>

#include <concepts>

template <std::integral T>
__global__ void probe(T* values) {
  values[threadIdx.x] = T(threadIdx.x);
}

void launch(int* values) { probe<<<1, 32>>>(values); }
