// Working memory of a kernel: buffers of each thread that grow and are kept, so that a shape seen before allocates
// nothing.
#pragma once
#include <cstdint>

namespace ifan {

// Under make sanitize memory that nobody has written holds NaN, which shows in the results of a kernel that reads it.
inline void poison([[maybe_unused]] float* memory, [[maybe_unused]] int64_t floats) {
#ifdef IFAN_POISON
  for (int64_t i = 0; i < floats; ++i) memory[i] = __builtin_nanf("");
#endif
}

// At least `floats` values, aligned to 64 bytes, valid until this thread asks again; null: out of memory.
float* scratch(int64_t floats);

// The same for indices, in memory of their own.
int64_t* index_table(int64_t count);

}  // namespace ifan
