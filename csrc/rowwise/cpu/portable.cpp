#define PENSTOCK_ISA portable
#include "rowwise/cpu/kernels.h"
