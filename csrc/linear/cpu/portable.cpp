#define PENSTOCK_ISA portable
#include "linear/cpu/packed.h"
