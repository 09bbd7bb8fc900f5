#ifdef __x86_64__
#define PENSTOCK_ISA avx2
#include "kernels_impl.h"
#endif
