// Words that are loaded and stored at once.
#pragma once

#include <cstdint>

namespace penstock::device {

struct alignas(8) Pair {
  uint32_t word[2];
};
struct alignas(16) Quad {
  uint32_t word[4];
};

}  // namespace penstock::device
