// Latency of one step in which the blocks of a group give each other their shares of h through global memory (L2).
//
//   grid_sync  cooperative groups' grid.sync(), then plain loads; one group only
//   counter    one release-add a block on the group's counter, polled by one thread a block, then plain loads
//   flags      the step's number travels with the data: 8-byte stores of (value, step), polled by every reader
//
// Two groups stand for the two directions of a layer that share the device. Two buffers suffice for `flags` and
// `counter`: a block sends step s + 1 when it has everybody's step s, which each sent after reading s - 1.
#include <cooperative_groups.h>

#include "probe.h"

constexpr int THREADS = 256;

enum Scheme { GRID_SYNC, COUNTER, FLAGS };

struct Group {
    uint2* data;        // two buffers of blocks * share: (value, step)
    unsigned* counter;
};

__device__ uint2 load_volatile(const uint2* pointer) {
    uint2 value;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(pointer) : "memory");
    return value;
}

__device__ unsigned load_acquire(const unsigned* pointer) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
}

// `share`: 8-byte pieces that each block contributes to a step. `first`: the steps of earlier launches.
template <Scheme SCHEME>
__global__ void __launch_bounds__(THREADS) exchange(int steps, int share, int blocks, unsigned first, Group one, Group two,
                                                    unsigned* errors) {
    const Group group = blockIdx.x < blocks ? one : two;
    const int rank = blockIdx.x % blocks;
    const long long begin = clock64();
    unsigned wrong = 0;
    for (unsigned step = first; step < first + steps; ++step) {
        uint2* const buffer = group.data + (step & 1) * static_cast<size_t>(blocks) * share;
        for (int piece = threadIdx.x; piece < share; piece += THREADS) {
            uint2* const target = buffer + static_cast<size_t>(rank) * share + piece;
            asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(target), "r"(rank * share + piece),
                         "r"(step + 1)
                         : "memory");
        }
        bool late = false;
        if (SCHEME == GRID_SYNC) {
            cooperative_groups::this_grid().sync();
        } else if (SCHEME == COUNTER) {
            __syncthreads();
            if (threadIdx.x == 0) {
                asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(group.counter) : "memory");
                while (load_acquire(group.counter) < (step + 1) * blocks && !late) {
                    late = clock64() - begin > PATIENCE_CYCLES * 4;
                }
            }
            late = __syncthreads_or(late);
        }
        for (int piece = threadIdx.x; piece < blocks * share; piece += THREADS) {
            uint2 got = load_volatile(buffer + piece);
            while (SCHEME == FLAGS && got.y != step + 1 && !late) {
                late = clock64() - begin > PATIENCE_CYCLES * 4;
                got = load_volatile(buffer + piece);
            }
            if (got.x != piece || got.y != step + 1) ++wrong;
        }
        if (SCHEME == FLAGS) late = __syncthreads_or(late);
        if (late) break;  // grid_sync never is: nobody is left waiting in it
    }
    if (wrong) atomicAdd(errors, wrong);
}

template <Scheme SCHEME>
void measure(const char* name) {
    constexpr int STEPS = 4000;
    void* const kernel = reinterpret_cast<void*>(exchange<SCHEME>);
    const int multiprocessors = device_properties().multiProcessorCount;
    unsigned* errors = on_device<unsigned>(1);
    for (int groups : {1, 2}) {
        if (SCHEME == GRID_SYNC && groups == 2) continue;
        for (int blocks : {16, 32, 64, multiprocessors}) {
            if (groups * blocks > multiprocessors) continue;
            // pieces of 8 bytes carry 4 bytes of data: 2, 16 and 64 KiB of h for a group, and a flag alone
            for (int bytes : {0, 2048, 16384, 65536}) {
                int share = std::max(1, bytes / 4 / blocks), of_group = blocks, steps = STEPS;
                unsigned first = 0;
                Group group[2];
                for (Group& each : group) {
                    each.data = on_device<uint2>(2 * static_cast<size_t>(blocks) * share);
                    each.counter = on_device<unsigned>(1);
                }
                const float time = milliseconds([&] {
                    void* arguments[] = {&steps, &share, &of_group, &first, &group[0], &group[1], &errors};
                    CHECK(cudaLaunchCooperativeKernel(kernel, dim3(groups * blocks), dim3(THREADS), arguments, 0, nullptr));
                    first += STEPS;
                });
                std::printf(
                    "{\"scheme\": \"%s\", \"groups\": %d, \"blocks\": %d, \"h_bytes\": %d, \"us_per_step\": %.4f, "
                    "\"errors\": %u}\n",
                    name, groups, blocks, blocks * share * 4, 1e3 * time / STEPS, read_back(errors));
                std::fflush(stdout);
                for (Group& each : group) {
                    CHECK(cudaFree(each.data));
                    CHECK(cudaFree(each.counter));
                }
            }
        }
    }
}

int main() {
    measure<GRID_SYNC>("grid_sync");
    measure<COUNTER>("counter");
    measure<FLAGS>("flags");
}
