// How many clusters of thread blocks are resident at a time, by cluster size, shared memory and threads of a block.
#include "probe.h"

__global__ void kernel(float* out) {
    extern __shared__ float shared[];
    shared[threadIdx.x] = threadIdx.x;
    __syncthreads();
    if (out) out[threadIdx.x] = shared[threadIdx.x];
}

int main() {
    const int limit = static_cast<int>(device_properties().sharedMemPerBlockOptin / 1024);
    for (int threads : {128, 256, 384, 512}) {
        for (int kib : {32, 64, 96, 112, 128, 160, 192, 208, limit}) {
            if (kib > limit) continue;
            for (int cluster : {1, 2, 4, 8, 16}) {
                const int clusters = resident_clusters(kernel, threads, kib * 1024, cluster);
                std::printf("{\"threads\": %d, \"shared_kib\": %d, \"cluster\": %d, \"clusters\": %d, \"blocks\": %d}\n",
                            threads, kib, cluster, clusters, clusters * cluster);
            }
        }
    }
}
