#include "scratch.h"

#include <cstdlib>

namespace ifan {
namespace {

struct Buffer {
  void* data = nullptr;
  int64_t size = 0;
  ~Buffer() { free(data); }

  void* at_least(int64_t bytes) {
    if (bytes > size) {
      free(data);
      size = (bytes + 63) / 64 * 64;
      data = aligned_alloc(64, size);
      if (!data) size = 0;
    }
    return data;
  }
};

thread_local Buffer values, indices;

}  // namespace

float* scratch(int64_t floats) {
  float* memory = static_cast<float*>(values.at_least(floats * sizeof(float)));
  if (memory) poison(memory, floats);
  return memory;
}

int64_t* index_table(int64_t count) { return static_cast<int64_t*>(indices.at_least(count * sizeof(int64_t))); }

}  // namespace ifan
