// Working memory of a kernel, one buffer a thread that grows and is kept: no allocation once a shape has been seen.
#pragma once
#include <cstdint>

namespace ifan {

// At least `floats` values, aligned to 64 bytes, valid until this thread asks again; null: out of memory.
float* scratch(int64_t floats);

}  // namespace ifan
