// What the kernels ask of the machine: on a GPU these are single instructions. Nothing else of them is CUDA's own, so a
// machine that gives every function here a counterpart runs the very source of the kernels: the tests put a header of
// this name before it, for an emulated one.
#pragma once

#include <cuda_runtime.h>

#include "lstm/cuda/words.h"

#define PENSTOCK_DEVICE __device__ __forceinline__
#define PENSTOCK_UNROLL _Pragma("unroll")
#define PENSTOCK_ROLL _Pragma("unroll 1")  // where unrolling would only cost registers

namespace penstock::device {

PENSTOCK_DEVICE int thread() { return int(threadIdx.x); }
PENSTOCK_DEVICE int block() { return int(blockIdx.x); }

// The block's dynamic shared memory.
PENSTOCK_DEVICE char* shared() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

PENSTOCK_DEVICE uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }

// ---- threads of a warp and of a block

// Instructions that a warp executes as one (products, transposes, barriers) want this after a branch that may part it.
PENSTOCK_DEVICE void sync_warp() { __syncwarp(); }
PENSTOCK_DEVICE bool any(bool value) { return __any_sync(~0u, value); }
PENSTOCK_DEVICE uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(~0u, value, lane); }

PENSTOCK_DEVICE void sync_block() { __syncthreads(); }

// A barrier of some of the block's warps; number 0 is sync_block's.
PENSTOCK_DEVICE void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- products: m16n8k16 of bfloat16, summed in float

PENSTOCK_DEVICE void multiply_add(float (&d)[4], const Quad& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit values from shared memory; thread i gives the address of row i % 8 of matrix i / 8.
PENSTOCK_DEVICE void load_matrices(Quad& out, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3])
               : "r"(shared_address(row))
               : "memory");
}

// The transpose of an 8 x 8 matrix of 16-bit values held by a warp, two values to a thread.
PENSTOCK_DEVICE uint32_t transpose(uint32_t value) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(value));
  return out;
}

// ---- numbers

PENSTOCK_DEVICE float exponential(float x) { return __expf(x); }
PENSTOCK_DEVICE float reciprocal(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
PENSTOCK_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
PENSTOCK_DEVICE uint32_t float_to_bits(float value) { return __float_as_uint(value); }

// Two bfloat16 in one word, rounded to nearest, ties to even.
PENSTOCK_DEVICE uint32_t pack(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// ---- copies from global to shared memory that run behind the thread that asks for them

// Copies kBytes (4 or 8), or writes zeros when not `real`.
template <int kBytes>
PENSTOCK_DEVICE void copy_async(void* to, const void* from, bool real) {
  static_assert(kBytes == 4 || kBytes == 8);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
               "r"(real ? kBytes : 0)
               : "memory");
}
PENSTOCK_DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all but the last `kOpen` closed groups of this thread's copies.
template <int kOpen>
PENSTOCK_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// ---- words in global memory that other blocks of a running grid read: each is read and written as a whole

PENSTOCK_DEVICE void publish(uint64_t* at, uint32_t value, uint32_t stamp) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(at), "l"(uint64_t(stamp) << 32 | value) : "memory");
}

PENSTOCK_DEVICE void publish(uint64_t* at, Pair values, uint32_t stamp) {
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1,%2};" ::"l"(at), "l"(uint64_t(stamp) << 32 | values.word[0]),
               "l"(uint64_t(stamp) << 32 | values.word[1])
               : "memory");
}

// Reads kPairs pairs of words, `stride` words apart, each until it bears the stamp.
template <int kPairs>
PENSTOCK_DEVICE void await(const uint64_t* first, int64_t stride, uint32_t stamp, Pair (&values)[kPairs]) {
  uint64_t words[kPairs][2];
  bool complete;
  do {
    complete = true;
    PENSTOCK_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      asm volatile("ld.relaxed.gpu.global.v2.b64 {%0,%1}, [%2];"
                   : "=l"(words[i][0]), "=l"(words[i][1])
                   : "l"(first + i * stride)
                   : "memory");
    }
    PENSTOCK_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      complete = complete && uint32_t(words[i][0] >> 32) == stamp && uint32_t(words[i][1] >> 32) == stamp;
    }
  } while (!complete);
  PENSTOCK_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    values[i] = {{uint32_t(words[i][0]), uint32_t(words[i][1])}};
  }
}

// ---- thread-block clusters and their barriers in shared memory (sm_90)

PENSTOCK_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// For one arrival per phase besides the bytes that are expected. All blocks must meet in sync_cluster before its use.
PENSTOCK_DEVICE void init_barrier(uint64_t* barrier) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier))
      : "memory");
}

// Arrives, and lets the phase wait for this many bytes.
PENSTOCK_DEVICE void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

PENSTOCK_DEVICE void wait_barrier(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.b32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

// The address in block `rank` of the cluster that corresponds to this block's `at`.
PENSTOCK_DEVICE uint32_t in_block(const void* at, int rank) {
  uint32_t out;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(shared_address(at)), "r"(rank));
  return out;
}

// Stores into block `rank`'s shared memory, at the address that corresponds to `to`, and counts the bytes there.
PENSTOCK_DEVICE void store_remote(void* to, uint64_t* barrier, int rank, Quad v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                   in_block(to, rank)),
               "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(in_block(barrier, rank))
               : "memory");
}
PENSTOCK_DEVICE void store_remote(void* to, uint64_t* barrier, int rank, Pair v) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(in_block(to, rank)),
      "r"(v.word[0]), "r"(v.word[1]), "r"(in_block(barrier, rank))
      : "memory");
}

}  // namespace penstock::device
