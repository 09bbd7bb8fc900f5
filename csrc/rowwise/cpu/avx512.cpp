#ifdef __AVX512BW__
#define PENSTOCK_ISA avx512
#include "rowwise/cpu/kernels.h"
#endif
