// Latency of one step in which every block of a cluster gives its share of h to every other, through distributed
// shared memory. A step is what a recurrent kernel would do less its arithmetic: take what arrived, hand on, wait.
//
//   st_async   16-byte stores that count themselves off on the receiver's mbarrier
//   st_async_8 the same of 8 bytes, as the LSTM's backward sends
//   bulk       one asynchronous bulk copy a peer, counted off likewise
//   barrier    plain 16-byte stores, then the hardware's cluster barrier
//
// Two buffers suffice: a block sends step s + 1 when it holds everybody's step s, which each sent after reading s - 1.
#include "probe.h"

constexpr int THREADS = 256;

enum Scheme { ST_ASYNC, ST_ASYNC_8, BULK, BARRIER };

__device__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ uint32_t peer_address(uint32_t address, uint32_t rank) {
    uint32_t peer;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
    return peer;
}

__device__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ bool wait(uint32_t barrier, uint32_t parity) {
    const long long begin = clock64();
    uint32_t done = 0;
    while (!done) {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
        if (!done && clock64() - begin > PATIENCE_CYCLES) return false;
    }
    return true;
}

// `share`: bytes that each block contributes to a step, a multiple of 16.
template <Scheme SCHEME>
__global__ void __launch_bounds__(THREADS) exchange(int steps, int share, int cluster, unsigned* errors,
                                                    long long* cycles) {
    extern __shared__ __align__(128) uint8_t memory[];  // two of share, then two of cluster * share
    __shared__ __align__(8) uint64_t barriers[2];
    const uint32_t rank = cluster_rank(), all = cluster * share;
    uint8_t* const buffers = memory + 2 * share;
    const uint32_t at_barriers = shared_address(barriers), at_buffers = shared_address(buffers);
    if (threadIdx.x < 2) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at_barriers + 8 * threadIdx.x));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    cluster_barrier();

    constexpr uint32_t PIECE = SCHEME == ST_ASYNC_8 ? 8 : 16;
    const uint32_t pieces = share / PIECE;
    unsigned wrong = 0;
    uint32_t seen = 0;  // what the last step brought: the next one must depend on it
    const long long begin = clock64();
    for (int step = 0; step < steps; ++step) {
        const uint32_t half = step & 1, barrier = at_barriers + 8 * half, parity = (step >> 1) & 1;
        uint8_t* const own = memory + half * share;
        const uint32_t value = step + 1 + (seen & 0x80000000u);
        if (SCHEME != BARRIER && threadIdx.x == 0) {
            asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(all)
                         : "memory");
        }
        if (SCHEME == BULK) {
            for (uint32_t piece = threadIdx.x; piece < pieces; piece += THREADS) {
                reinterpret_cast<uint4*>(own)[piece] = make_uint4(value, rank, piece, value);
            }
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            __syncthreads();
            if (threadIdx.x < cluster) {
                const uint32_t target = at_buffers + half * all + rank * share;
                asm volatile(
                    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                        peer_address(target, threadIdx.x)),
                    "r"(shared_address(own)), "r"(share), "r"(peer_address(barrier, threadIdx.x))
                    : "memory");
            }
        } else {
            for (uint32_t job = threadIdx.x; job < pieces * cluster; job += THREADS) {
                const uint32_t peer = job / pieces, piece = job % pieces;
                const uint32_t target = peer_address(at_buffers + half * all + rank * share + PIECE * piece, peer);
                if (SCHEME == ST_ASYNC) {
                    asm volatile(
                        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %1}, [%4];" ::
                            "r"(target),
                        "r"(value), "r"(rank), "r"(piece), "r"(peer_address(barrier, peer))
                        : "memory");
                } else if (SCHEME == ST_ASYNC_8) {
                    asm volatile(
                        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                            target),
                        "r"(value), "r"(rank << 16 | piece), "r"(peer_address(barrier, peer))
                        : "memory");
                } else {
                    asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %1};" ::"r"(target), "r"(value),
                                 "r"(rank), "r"(piece)
                                 : "memory");
                }
            }
        }
        bool arrived = true;
        if (SCHEME == BARRIER) {
            cluster_barrier();
        } else {
            arrived = wait(barrier, parity);
        }
        for (uint32_t job = threadIdx.x; job < pieces * cluster; job += THREADS) {
            const uint32_t peer = job / pieces, piece = job % pieces;
            if (SCHEME == ST_ASYNC_8) {
                const uint2 got = reinterpret_cast<const uint2*>(buffers + half * all)[job];
                if (got.x != step + 1 || got.y != (peer << 16 | piece)) ++wrong;
                seen = got.x;
                continue;
            }
            const uint4 got = reinterpret_cast<const uint4*>(buffers + half * all)[job];
            if (got.x != step + 1 || got.y != peer || got.z != piece || got.w != got.x) ++wrong;
            seen = got.x;
        }
        if (!arrived) wrong += 1000000;
        if (__syncthreads_or(!arrived)) break;
    }
    const long long end = clock64();
    if (wrong) atomicAdd(errors, wrong);
    if (blockIdx.x == 0 && threadIdx.x == 0) *cycles = end - begin;
    cluster_barrier();  // nobody leaves while a peer may still write to it
}

template <Scheme SCHEME>
void measure(const char* name) {
    constexpr int STEPS = 2000;
    auto kernel = exchange<SCHEME>;
    unsigned* errors = on_device<unsigned>(1);
    long long* cycles = on_device<long long>(1);
    for (int cluster : {2, 4, 8, 16}) {
        for (int share : {256, 512, 1024, 2048, 4096}) {
            const size_t shared = 2 * static_cast<size_t>(cluster + 1) * share;
            const int resident = resident_clusters(kernel, THREADS, shared, cluster);
            // one cluster alone; and as many as a kernel that fills every multiprocessor once would have
            const int full = std::min(resident, device_properties().multiProcessorCount / cluster);
            if (!resident) {
                std::printf("{\"scheme\": \"%s\", \"cluster\": %d, \"share_bytes\": %d, \"why\": \"no such cluster fits\"}\n",
                            name, cluster, share);
                continue;
            }
            for (int clusters : {1, full}) {
                const float time = milliseconds([&] {
                    launch_clusters(kernel, clusters * cluster, THREADS, shared, cluster, STEPS, share, cluster, errors,
                                    cycles);
                });
                std::printf(
                    "{\"scheme\": \"%s\", \"cluster\": %d, \"share_bytes\": %d, \"clusters\": %d, \"us_per_step\": %.4f, "
                    "\"cycles_per_step\": %.1f, \"errors\": %u}\n",
                    name, cluster, share, clusters, 1e3 * time / STEPS, double(read_back(cycles)) / STEPS,
                    read_back(errors));
                std::fflush(stdout);
                if (full == 1) break;
            }
        }
    }
}

int main() {
    measure<ST_ASYNC>("st_async");
    measure<ST_ASYNC_8>("st_async_8");
    measure<BULK>("bulk");
    measure<BARRIER>("barrier");
}
