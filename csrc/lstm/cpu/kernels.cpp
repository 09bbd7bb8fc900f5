#include "kernels.h"

namespace penstock::lstm {

const Kernels& kernels_for(Isa isa) {
  switch (isa) {
#ifdef __x86_64__
    case Isa::avx2:
      return avx2::kernels;
    case Isa::avx512:
      return avx512::kernels;
    case Isa::avx512_bf16:
      return avx512_bf16::kernels;
#endif
    default:
      return portable::kernels;
  }
}

}  // namespace penstock::lstm
