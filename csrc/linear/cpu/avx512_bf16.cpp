#ifdef __AVX512BF16__
#define PENSTOCK_ISA avx512_bf16
#include "linear/cpu/packed.h"
#endif
