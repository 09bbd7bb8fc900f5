#ifdef __AVX2__
#define PENSTOCK_ISA avx2
#include "rowwise/cpu/kernels.h"
#endif
