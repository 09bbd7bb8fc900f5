#include "kernels.h"

namespace penstock::lstm {

const Kernels& kernels_for(Isa isa) {
#ifdef __x86_64__
  return table_for(isa, portable::kernels, avx2::kernels, avx512::kernels, avx512_bf16::kernels, amx_bf16::kernels);
#else
  return table_for(isa, portable::kernels);
#endif
}

}  // namespace penstock::lstm
