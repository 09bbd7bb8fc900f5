// The vector instruction sets that the CPU kernels are compiled for, and the choice among them at run time.
//
// A kernel's source is one header, written with simd.h, which small files include: avx2.cpp and so on, each compiled
// with its own flags (CMakeLists.txt) into a namespace of its own. Such files must keep clear of non-trivial inline
// functions from other headers: the linker keeps one copy of those, perhaps one with instructions this machine lacks.
#pragma once

#include <string>
#include <vector>

namespace penstock {

// avx512_bf16 has VNNI, products of bytes, as every processor with AVX-512 BF16 has. amx_bf16 is avx512_bf16 with
// Intel's matrix unit, amx.h.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx_bf16 };

// What this build and this machine can both run, slowest first.
const std::vector<Isa>& available_isas();

std::string name(Isa isa);

// An empty name means the fastest. Throws std::invalid_argument if the name is unknown or the machine lacks it.
Isa isa_named(const std::string& name);

// The one of these tables of functions that is for an instruction set, in the order of Isa; the last of them where the
// kernel has none of its own for a faster one.
template <class Table, class... Faster>
const Table& table_for(Isa isa, const Table& portable, const Faster&... faster) {
  const Table* const tables[] = {&portable, &faster...};
  constexpr int last = sizeof...(faster);
  return *tables[static_cast<int>(isa) < last ? static_cast<int>(isa) : last];
}

// That, from the tables that there are: where the machine is another than x86-64 the first alone is compiled.
#ifdef __x86_64__
#define PENSTOCK_TABLE_FOR(isa, portable, ...) table_for(isa, portable, __VA_ARGS__)
#else
#define PENSTOCK_TABLE_FOR(isa, portable, ...) table_for(isa, portable)
#endif

}  // namespace penstock
