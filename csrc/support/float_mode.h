// SPDX-License-Identifier: Apache-2.0
// Makes subnormal floats count as what they are while it lives, on the thread it lives on. A host program may have set
// the processor to treat them as zero (torch.set_flush_denormal), and results must not depend on that.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace detent {

class KeepSubnormals {
 public:
#if defined(__SSE__)
  KeepSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~kFlags); }
  ~KeepSubnormals() { _mm_setcsr((_mm_getcsr() & ~kFlags) | (before_ & kFlags)); }

 private:
  static constexpr unsigned kFlags = 0x8040;  // flush to zero, denormals are zero
  unsigned before_;
#else
  KeepSubnormals() {}
  ~KeepSubnormals() {}
#endif

 public:
  KeepSubnormals(const KeepSubnormals&) = delete;
  KeepSubnormals& operator=(const KeepSubnormals&) = delete;
};

}  // namespace detent
