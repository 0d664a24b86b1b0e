// SPDX-License-Identifier: Apache-2.0
// One source, several instruction sets. CMake compiles every kernel source once per set with DETENT_ISA defined as the
// namespace to fill; the rest of the program reaches the chosen build through a table of function pointers.
//
// A kernel family `foo` has a header with `struct FooTable { ... };` and `DETENT_KERNEL_TABLE(FooTable, foo_table)`,
// and a source that defines `const FooTable foo_table = {...};` inside `namespace detent::DETENT_ISA`. Callers write
// `detent::foo_table().function(...)`.
//
// Kernel sources must not instantiate library templates that other files use too (std::vector, std::sort, ...): the
// linker keeps one copy of an inline function, and it might be the AVX-512 one. Take scratch memory as an argument,
// or keep what is shared in the DETENT_ISA namespace.
#pragma once

#include "support/cpu.h"

#if defined(__x86_64__)
// The sets most kernels are compiled for; one beyond them takes the best of these.
#define DETENT_KERNEL_TABLE(Type, name) DETENT_KERNEL_TABLE_WITH(Type, name, avx512)
// For kernels that integer dot products speed up, compiled for these too (`detent_add_kernels` lists them apart).
#define DETENT_DOT_KERNEL_TABLE(Type, name) \
  namespace avx512vnni {                    \
  extern const Type name;                   \
  }                                         \
  DETENT_KERNEL_TABLE_WITH(Type, name, avx512vnni)
#define DETENT_KERNEL_TABLE_WITH(Type, name, best) \
  namespace baseline {                             \
  extern const Type name;                          \
  }                                                \
  namespace avx2 {                                 \
  extern const Type name;                          \
  }                                                \
  namespace avx512 {                               \
  extern const Type name;                          \
  }                                                \
  inline const Type& name() {                      \
    switch (active_isa()) {                        \
      case Isa::kAvx512Vnni:                       \
        return best::name;                         \
      case Isa::kAvx512:                           \
        return avx512::name;                       \
      case Isa::kAvx2:                             \
        return avx2::name;                         \
      default:                                     \
        return baseline::name;                     \
    }                                              \
  }                                                \
  static_assert(true, "needs a semicolon")
#else
#define DETENT_KERNEL_TABLE(Type, name)                \
  namespace baseline {                                 \
  extern const Type name;                              \
  }                                                    \
  inline const Type& name() { return baseline::name; } \
  static_assert(true, "needs a semicolon")
#define DETENT_DOT_KERNEL_TABLE(Type, name) DETENT_KERNEL_TABLE(Type, name)
#endif
