#ifdef __AVX512BW__
#define PENSTOCK_ISA avx512
#include "linear/cpu/packed.h"
#endif
