#ifdef __AVX2__
#define PENSTOCK_ISA avx2
#include "bag/cpu/kernels.h"
#endif
