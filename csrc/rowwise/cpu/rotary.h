// Rotary position embedding, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "rowwise/cpu/columns.h"

namespace penstock::PENSTOCK_ISA {

// Of one token: out = x cos + (-x2, x1) sin, with x1 and x2 the halves of each head. The transposed rotation reads the
// other half of sin, with the other sign.
template <class Element>
static void rotate_token(const RotaryProblem& p, const Heads& heads, int64_t token) {
  const int64_t half = p.head_dim / 2;
  const float *cos = p.cos + token * p.head_dim, *sin = p.sin + token * p.head_dim;
  const float *first_sin = p.transposed ? sin + half : sin, *second_sin = p.transposed ? sin : sin + half;
  const float sign = p.transposed ? -1.0f : 1.0f;
  const Element* token_x = static_cast<const Element*>(heads.x) + token * heads.token_stride;
  Element* token_out = static_cast<Element*>(heads.out) + token * heads.count * p.head_dim;
  for_columns(half, [&](auto c) __attribute__((always_inline)) {
    const Floats c1 = c.load(cos), c2 = c.load(cos + half), s1 = c.load(first_sin) * sign,
                 s2 = c.load(second_sin) * sign;
    for (int64_t head = 0; head < heads.count; ++head) {
      const Element* x = token_x + head * heads.head_stride;
      Element* out = token_out + head * p.head_dim;
      const Floats x1 = c.load(x), x2 = c.load(x + half);
      c.store(out, x1 * c1 - x2 * s1);
      c.store(out + half, x2 * c2 + x1 * s2);
    }
  });
}

template <class Element>
static void rotary_rows(const RotaryProblem& p, const Item& item) {
  for (int64_t token = item.first; token < item.last; ++token) {
    rotate_token<Element>(p, p.q, token);
    rotate_token<Element>(p, p.k, token);
  }
}

}  // namespace penstock::PENSTOCK_ISA
