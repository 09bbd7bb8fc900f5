#ifdef __AVX512BF16__
#define PENSTOCK_ISA avx512_bf16
#include "rowwise/cpu/kernels.h"
#endif
