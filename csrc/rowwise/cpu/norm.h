// Bias, dropout, residual and LayerNorm in one pass over memory, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "rowwise/cpu/dropout_rows.h"

namespace penstock::PENSTOCK_ISA {

// A row of a tensor that may be null.
template <class Element, class Void>
PENSTOCK_INLINE Element* row_of(Void* tensor, int64_t row, int64_t width) {
  return tensor == nullptr ? nullptr : static_cast<Element*>(tensor) + row * width;
}

// read(row, columns) gives x + x_bias.
template <class Element, class Residual, class Read>
PENSTOCK_INLINE void norm_rows(const NormProblem& p, const Item& item, Scratch& scratch, const Read& read) {
  const int64_t width = p.width;
  float* z = scratch.take<float>(whole_vectors(width));
  RowMasks masks(p.dropout, width, item.first, scratch.take<uint64_t>(RowMasks::words(width)));
  for (int64_t row = item.first; row < item.last; ++row) {
    const uint64_t* words = masks.next();
    const Residual* residual = row_of<const Residual>(p.residual, row, width);
    Element *out = row_of<Element>(p.out, row, width), *saved = row_of<Element>(p.normal, row, width);
    Residual* stream = row_of<Residual>(p.z, row, width);
    Floats sum{};
    for_columns(width, [&](auto c) __attribute__((always_inline)) {
      const Floats v = drop(words, c, p.dropout.scale, read(row, c)) + c.load(residual);
      store(z + c.begin, v);
      if (stream != nullptr) c.store(stream, v);
      sum += v;  // lanes beyond the row hold 0
    });
    const float mean = horizontal_sum(sum) / float(width);
    Floats squares{};
    for_columns(width, [&](auto c) __attribute__((always_inline)) {
      const Floats centred = keep(c.lanes(), load(z + c.begin) - mean);
      squares += centred * centred;
    });
    const float rstd = 1.0f / __builtin_sqrtf(horizontal_sum(squares) / float(width) + p.eps);
    for_columns(width, [&](auto c) __attribute__((always_inline)) {
      const Floats normal = (load(z + c.begin) - mean) * rstd;
      Floats y = normal * c.load(p.weight);
      if (p.bias != nullptr) y += c.load(p.bias);
      c.store(out, y);
      if (saved != nullptr) c.store(saved, normal);
    });
    if (saved != nullptr) p.rstd[row] = rstd;
  }
}

template <class Element, class Residual>
static void norm_forward_rows(const NormProblem& p, const Item& item, Scratch& scratch) {
  norm_rows<Element, Residual>(p, item, scratch, [&](int64_t row, auto c) __attribute__((always_inline)) {
    Floats v = c.load(row_of<const Element>(p.x, row, p.width));
    if (p.x_bias != nullptr) v += c.load(p.x_bias);
    return v;
  });
}

template <class Element, class Residual>
static void norm_backward_rows(const NormProblem& p, const Item& item, Scratch& scratch) {
  const int64_t width = p.width;
  RowMasks masks(p.dropout, width, item.first, scratch.take<uint64_t>(RowMasks::words(width)));
  float* grad_weight = p.sums + item.piece * 3 * width;
  float *grad_bias = grad_weight + width, *grad_x_bias = grad_bias + width;
  std::memset(grad_weight, 0, size_t(3 * width) * sizeof(float));
  for (int64_t row = item.first; row < item.last; ++row) {
    const uint64_t* words = masks.next();
    const Element* normals = row_of<const Element>(p.normal, row, width);
    const Element* grad_out = row_of<const Element>(p.grad_out, row, width);
    const Residual* grad_z = row_of<const Residual>(p.grad_z, row, width);
    Residual* grad_residual = row_of<Residual>(p.grad_residual, row, width);
    Element* grad_x = row_of<Element>(p.grad_x, row, width);
    const float rstd = p.rstd[row];
    Floats sum{}, projection{};
    for_columns(width, [&](auto c) __attribute__((always_inline)) {
      const Floats dy = c.load(grad_out), normal = c.load(normals), g = dy * c.load(p.weight);
      sum += g;  // dy is 0 in lanes beyond the row
      projection += g * normal;
      c.store(grad_weight, c.load(grad_weight) + dy * normal);
      c.store(grad_bias, c.load(grad_bias) + dy);
    });
    const float mean_g = horizontal_sum(sum) / float(width), mean_p = horizontal_sum(projection) / float(width);
    for_columns(width, [&](auto c) __attribute__((always_inline)) {
      const Floats normal = c.load(normals), g = c.load(grad_out) * c.load(p.weight);
      Floats dz = (g - mean_g - normal * mean_p) * rstd;
      if (grad_z != nullptr) dz += c.load(grad_z);
      const Floats dx = drop(words, c, p.dropout.scale, dz);
      c.store(grad_residual, dz);
      if (grad_x != nullptr) c.store(grad_x, dx);
      if (p.x_bias != nullptr) c.store(grad_x_bias, c.load(grad_x_bias) + dx);
    });
  }
}

}  // namespace penstock::PENSTOCK_ISA
