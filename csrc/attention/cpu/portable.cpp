#define PENSTOCK_ISA portable
#include "attention/cpu/kernels.h"
