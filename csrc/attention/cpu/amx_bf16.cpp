#ifdef __AMX_BF16__
#define PENSTOCK_ISA amx_bf16
#include "attention/cpu/backward_amx.h"
#include "attention/cpu/forward_amx.h"

namespace penstock {
namespace amx_bf16 {

// The unit multiplies bfloat16 only, and shorter sequences leave most of its registers empty.
static bool pays(const Problem& p, const Item& item) {
  const Spans s(p, item.sequence);
  return p.dtype == DType::bfloat16 && s.length_q > kAmxRows && s.length_k > kAmxRows;
}

static void forward(const Problem& p, const Item& item, Scratch& scratch) {
  if (!pays(p, item)) return attention::avx512_bf16_kernels.forward(p, item, scratch);
  const MatrixUnit unit;
  forward_item(p, item, scratch);
}

static void backward(const Problem& p, const Item& item, Scratch& scratch) {
  if (!pays(p, item)) return attention::avx512_bf16_kernels.backward(p, item, scratch);
  const MatrixUnit unit;
  backward_item(p, item, scratch);
}

}  // namespace amx_bf16

const attention::Kernels attention::amx_bf16_kernels{amx_bf16::forward, amx_bf16::backward};

}  // namespace penstock
#endif
