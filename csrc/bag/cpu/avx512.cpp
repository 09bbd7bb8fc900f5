#ifdef __AVX512BW__
#define PENSTOCK_ISA avx512
#include "bag/cpu/kernels.h"
#endif
