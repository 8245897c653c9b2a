// What the kernels' choices know of the processor's caches.
#pragma once
#include <cstdint>

namespace ifan {

int64_t second_level_cache();  // bytes a core, 0 if the system does not tell

}  // namespace ifan
