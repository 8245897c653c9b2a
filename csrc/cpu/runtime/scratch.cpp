#include "scratch.h"

#include <cstdlib>

namespace ifan {
namespace {

struct Buffer {
  float* data = nullptr;
  int64_t size = 0;
  ~Buffer() { free(data); }
};

thread_local Buffer buffer;

}  // namespace

float* scratch(int64_t floats) {
  if (floats > buffer.size) {
    free(buffer.data);
    const int64_t size = (floats + 15) / 16 * 16;
    buffer.data = static_cast<float*>(aligned_alloc(64, size * sizeof(float)));
    buffer.size = buffer.data ? size : 0;
  }
  return buffer.data;
}

}  // namespace ifan
