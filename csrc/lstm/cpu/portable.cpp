#define PENSTOCK_ISA portable
#include "kernels_impl.h"
