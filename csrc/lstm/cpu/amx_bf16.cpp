#ifdef __x86_64__
#define PENSTOCK_ISA amx_bf16
#include "kernels_impl.h"
#endif
