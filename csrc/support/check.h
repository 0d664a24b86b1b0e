// SPDX-License-Identifier: Apache-2.0
// Preconditions of the C++ layer. Throws std::invalid_argument, which Python sees as ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace detent {

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

template <class... Parts>
inline void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace detent
