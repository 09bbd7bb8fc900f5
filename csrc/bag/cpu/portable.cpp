#define PENSTOCK_ISA portable
#include "bag/cpu/kernels.h"
