#ifdef __AVX512BW__
#define PENSTOCK_ISA avx512
#include "attention/cpu/kernels.h"
#endif
