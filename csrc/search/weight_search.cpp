// SPDX-License-Identifier: Apache-2.0
#include "support/isa.h"

namespace detent::DETENT_ISA {}  // namespace detent::DETENT_ISA
