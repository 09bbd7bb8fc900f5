#ifdef __AVX2__
#define PENSTOCK_ISA avx2
#include "attention/cpu/kernels.h"
#endif
