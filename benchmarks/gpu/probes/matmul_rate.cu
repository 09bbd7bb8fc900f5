// Time of one recurrent step's product on every multiprocessor: 256 gates x K = 256, by N = 8 to 64 sequences, bf16.
// The weights are the first operand, from registers or from shared memory; h is the second, from shared memory. A step
// ends when its sums are there, as in a recurrence.
//
//   mma        mma.sync m16n8k16, eight warps of 32 gates each
//   wgmma      wgmma m64nNk16, two warpgroups of 128 gates each (compute capability 9.0a)
#include <cuda_bf16.h>

#include <cmath>

#include "probe.h"
#include "wgmma.h"

constexpr int M = 256, K = 256, THREADS = 256;
constexpr int STRIDE = K + 8;  // elements of a row for ldmatrix: 16 bytes of padding, no bank conflicts

// Small integers, whose products are exact, for the check; random values for the timing.
__host__ __device__ inline float element(bool check, int row, int k) {
    if (check) return static_cast<float>((row * 7 + k * 3) % 5 - 2);
    const uint32_t mixed = (row * 2654435761u ^ k * 2246822519u) * 3266489917u;
    return static_cast<float>(mixed >> 8) / (1 << 23) - 1.0f;
}

__device__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ uint32_t pair(bool check, int row, int k) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(element(check, row, k), element(check, row, k + 1));
    return *reinterpret_cast<const uint32_t*>(&both);
}

// The registers of the first operand, the same for both instructions: 16 rows from `row` on, 16 columns from `k` on.
__device__ void first_operand(uint32_t (&a)[4], bool check, int row, int k) {
    const int lane = threadIdx.x % 32, r = row + lane / 4, c = k + lane % 4 * 2;
    a[0] = pair(check, r, c);
    a[1] = pair(check, r + 8, c);
    a[2] = pair(check, r, c + 8);
    a[3] = pair(check, r + 8, c + 8);
}

__device__ void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d of 16 rows from `row` on and 8 columns from `column` on, to out (M, N)
template <int N>
__device__ void store(float* out, const float* d, int row, int column) {
    const int lane = threadIdx.x % 32, r = row + lane / 4, c = column + lane % 4 * 2;
    out[r * N + c] = d[0];
    out[r * N + c + 1] = d[1];
    out[(r + 8) * N + c] = d[2];
    out[(r + 8) * N + c + 1] = d[3];
}

template <int N, bool REGISTERS>
__global__ void __launch_bounds__(THREADS, 1) mma(int steps, bool check, float* out) {
    extern __shared__ __align__(128) __nv_bfloat16 memory[];
    __nv_bfloat16* const h = memory;  // (N, K)
    __nv_bfloat16* const weights = memory + N * STRIDE;  // (M, K), unless they are in registers
    for (int i = threadIdx.x; i < N * K; i += THREADS) h[i / K * STRIDE + i % K] = __float2bfloat16(element(check, i / K, i % K));
    if (!REGISTERS) {
        for (int i = threadIdx.x; i < M * K; i += THREADS) {
            weights[i / K * STRIDE + i % K] = __float2bfloat16(element(check, i / K, i % K));
        }
    }
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 32;
    uint32_t held[2][K / 16][4];
    if (REGISTERS) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
            for (int k = 0; k < K / 16; ++k) first_operand(held[tile][k], check, row + 16 * tile, 16 * k);
        }
    }
    __syncthreads();
    float d[2][N / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int k = 0; k < K / 16; k += 2) {
            uint32_t a[2][2][4];
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
                for (int part = 0; part < 2; ++part) {
                    if (REGISTERS) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) a[tile][part][i] = held[tile][k + part][i];
                    } else {
                        load_matrices(a[tile][part],
                                      weights + (row + 16 * tile + lane % 16) * STRIDE + 16 * (k + part) + lane / 16 * 8);
                    }
                }
            }
#pragma unroll
            for (int column = 0; column < N; column += 8) {
                uint32_t b[4];
                load_matrices(b, h + (column + lane % 8) * STRIDE + 16 * k + lane / 8 * 8);
#pragma unroll
                for (int tile = 0; tile < 2; ++tile) {
                    multiply(d[tile][column / 8], a[tile][0], b[0], b[1]);
                    multiply(d[tile][column / 8], a[tile][1], b[2], b[3]);
                }
            }
        }
        __syncthreads();  // as between the steps of a recurrence
    }
    if (blockIdx.x == 0) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
            for (int column = 0; column < N; column += 8) store<N>(out, d[tile][column / 8], row + 16 * tile, column);
        }
    }
}

// The place of (row, k) among 8 x 8 matrices of 128 bytes, `rows` / 8 of them to each 8 columns.
__device__ int place(int rows, int row, int k) { return (k / 8 * (rows / 8) + row / 8) * 64 + row % 8 * 8 + k % 8; }

template <int N, bool REGISTERS>
__global__ void __launch_bounds__(THREADS, 1) wgmma(int steps, bool check, float* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) __nv_bfloat16 memory[];
    __nv_bfloat16* const h = memory;
    __nv_bfloat16* const weights = memory + N * K;
    for (int i = threadIdx.x; i < N * K; i += THREADS) h[place(N, i / K, i % K)] = __float2bfloat16(element(check, i / K, i % K));
    if (!REGISTERS) {
        for (int i = threadIdx.x; i < M * K; i += THREADS) {
            weights[place(M, i / K, i % K)] = __float2bfloat16(element(check, i / K, i % K));
        }
    }
    const int group = threadIdx.x / 128 * 128, row = threadIdx.x / 32 % 4 * 16;  // of the warpgroup, and in its 64 rows
    uint32_t held[2][K / 16][4];
    if (REGISTERS) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
            for (int k = 0; k < K / 16; ++k) first_operand(held[tile][k], check, group + 64 * tile + row, 16 * k);
        }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const uint32_t at_h = shared_address(h), at_weights = shared_address(weights);
    float d[2][N / 2] = {};
    for (int step = 0; step < steps; ++step) {
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < K / 16; ++k) {
            const uint64_t b = matrix_descriptor(at_h + k * 2 * (N / 8) * 128, N / 8 * 128, 128);
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                if (REGISTERS) {
                    Wgmma<N>::from_registers(d[tile], held[tile][k], b);
                } else {
                    const uint32_t from = at_weights + (k * 2 * (M / 8) + (group + 64 * tile) / 8) * 128;
                    Wgmma<N>::from_shared(d[tile], matrix_descriptor(from, M / 8 * 128, 128), b);
                }
            }
        }
        wgmma_finish();
        __syncthreads();
    }
    if (blockIdx.x == 0) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
            for (int column = 0; column < N; column += 8) {
                store<N>(out, d[tile] + column / 2, group + 64 * tile + row, column);
            }
        }
    }
#endif
}

template <int N>
int errors(const float* out) {
    std::vector<float> found(M * N);
    CHECK(cudaMemcpy(found.data(), out, found.size() * sizeof(float), cudaMemcpyDeviceToHost));
    int wrong = 0;
    for (int row = 0; row < M; ++row) {
        for (int column = 0; column < N; ++column) {
            float expected = 0;
            for (int k = 0; k < K; ++k) expected += element(true, row, k) * element(true, column, k);
            wrong += found[row * N + column] != expected;
        }
    }
    return wrong;
}

template <int N, typename Kernel>
void measure(Kernel kernel, const char* instruction, const char* operand, size_t shared) {
    constexpr int STEPS = 20000;
    const int blocks = device_properties().multiProcessorCount;
    float* out = on_device<float>(M * N);
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    kernel<<<blocks, THREADS, shared>>>(1, true, out);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    const int wrong = errors<N>(out);
    const float time = milliseconds([&] { kernel<<<blocks, THREADS, shared>>>(STEPS, false, out); });
    const double flops = 2.0 * M * N * K * STEPS * blocks;
    std::printf(
        "{\"instruction\": \"%s\", \"weights_in\": \"%s\", \"n\": %d, \"us_per_step\": %.4f, \"tflops\": %.1f, "
        "\"errors\": %d}\n",
        instruction, operand, N, 1e3 * time / STEPS, flops / time / 1e9, wrong);
    std::fflush(stdout);
    CHECK(cudaFree(out));
}

template <int N>
void measure_all() {
    measure<N>(mma<N, true>, "mma", "registers", sizeof(__nv_bfloat16) * N * STRIDE);
    measure<N>(mma<N, false>, "mma", "shared", sizeof(__nv_bfloat16) * (N + M) * STRIDE);
    if (device_properties().major == 9) {
        measure<N>(wgmma<N, true>, "wgmma", "registers", sizeof(__nv_bfloat16) * N * K);
        measure<N>(wgmma<N, false>, "wgmma", "shared", sizeof(__nv_bfloat16) * (N + M) * K);
    }
}

int main() {
    measure_all<8>();
    measure_all<16>();
    measure_all<32>();
    measure_all<64>();
}
