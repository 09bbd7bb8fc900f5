// The layer for each instruction set: one templated source, compiled by avx2.cpp and its like (see csrc/isa.h).
#pragma once

#include "isa.h"
#include "layer.h"

namespace penstock::lstm {

struct Kernels {
  void (*forward)(const Layer&, const Forward&);
  void (*backward)(const Layer&, const Backward&);
  // The weights packed for `forward`: bytes of memory, aligned to 64, and what fills them.
  size_t (*packed_bytes)(const Layer&);
  void (*pack)(const Layer&, void* memory);
  // Floating-point operations done in `rounds` rounds of multiplication without memory traffic, for benchmarks.
  double (*multiply_in_registers)(DType, int64_t rounds);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
namespace amx_bf16 {
extern const Kernels kernels;
}

const Kernels& kernels_for(Isa isa);

}  // namespace penstock::lstm
