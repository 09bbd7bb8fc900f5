#include "kernels.h"

namespace penstock::lstm {

const Kernels& kernels_for(Isa isa) {
  return PENSTOCK_TABLE_FOR(isa, portable::kernels, avx2::kernels, avx512::kernels, avx512_bf16::kernels,
                            amx_bf16::kernels);
}

}  // namespace penstock::lstm
