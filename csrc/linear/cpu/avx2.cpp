#ifdef __AVX2__
#define PENSTOCK_ISA avx2
#include "linear/cpu/packed.h"
#endif
