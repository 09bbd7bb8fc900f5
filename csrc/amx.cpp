#include "amx.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace penstock {

bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;    // of leaf 7's edx: bfloat16, the registers, bytes
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmx) != kAmx) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace penstock
