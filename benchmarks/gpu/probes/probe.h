// What the probes share: checked CUDA calls, timing by events, one JSON object a line on standard output.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                            \
    do {                                                                                       \
        cudaError_t status = (call);                                                           \
        if (status != cudaSuccess) {                                                           \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status)); \
            std::exit(1);                                                                      \
        }                                                                                      \
    } while (0)

constexpr int ROUNDS = 7;

// A wait that outlasts this is given up and counted as an error: a wrong probe must end, not hang.
constexpr long long PATIENCE_CYCLES = 400'000'000;

inline cudaDeviceProp device_properties() {
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    return properties;
}

// Milliseconds of one launch: the median of ROUNDS after one that does not count.
template <typename Launch>
float milliseconds(Launch launch) {
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<float> times;
    for (int round = 0; round <= ROUNDS; ++round) {
        CHECK(cudaEventRecord(begin));
        launch();
        CHECK(cudaGetLastError());
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        float time;
        CHECK(cudaEventElapsedTime(&time, begin, end));
        if (round > 0) times.push_back(time);
    }
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[ROUNDS / 2];
}

// Zeroed memory of the device.
template <typename T>
T* on_device(size_t count) {
    T* pointer;
    CHECK(cudaMalloc(&pointer, count * sizeof(T)));
    CHECK(cudaMemset(pointer, 0, count * sizeof(T)));
    return pointer;
}

template <typename T>
T read_back(const T* pointer) {
    T value;
    CHECK(cudaMemcpy(&value, pointer, sizeof(T), cudaMemcpyDeviceToHost));
    return value;
}

#ifdef __CUDACC__
// Launches with clusters of `cluster` blocks along x.
template <typename... Parameters, typename... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int blocks, int threads, size_t shared, int cluster,
                     Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.attrs = &attribute;
    config.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// How many clusters of this kind are resident at a time on the whole device.
template <typename Kernel>
int resident_clusters(Kernel kernel, int threads, size_t shared, int cluster) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(cluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
        cudaGetLastError();  // the device refuses such a cluster altogether: none fits
        return 0;
    }
    return clusters;
}
#endif
