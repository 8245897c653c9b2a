// What g++'s -fsanitize=thread calls at every load and store, without ThreadSanitizer: counts those of given memory.
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace {

struct Memory {
  uintptr_t first;
  std::vector<bool> seen[2];  // a byte loaded, stored
};
std::vector<Memory> memories;
int64_t total[2];

void touch(const void* address, size_t bytes, int kind) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  for (Memory& memory : memories)
    if (at >= memory.first && at + bytes <= memory.first + memory.seen[0].size()) {
      total[kind] += bytes;
      for (size_t i = 0; i < bytes; ++i) memory.seen[kind][at - memory.first + i] = true;
      return;
    }
}

}  // namespace

extern "C" {

void count_memory(uintptr_t first, size_t bytes) {
  memories.push_back({first, {std::vector<bool>(bytes), std::vector<bool>(bytes)}});
}
void count_clear() {
  memories.clear();
  total[0] = total[1] = 0;
}
// Bytes loaded and stored, then distinct bytes loaded and stored.
void count_read(int64_t* found) {
  for (int kind = 0; kind < 2; ++kind) {
    found[kind] = total[kind];
    found[2 + kind] = 0;
    for (const Memory& memory : memories)
      for (const bool seen : memory.seen[kind]) found[2 + kind] += seen;
  }
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
int8_t __tsan_atomic8_load(const volatile int8_t* from, int) { return *from; }
#define ACCESSES(bytes)                                                \
  void __tsan_read##bytes(void* at) { touch(at, bytes, 0); }           \
  void __tsan_write##bytes(void* at) { touch(at, bytes, 1); }          \
  void __tsan_unaligned_read##bytes(void* at) { touch(at, bytes, 0); } \
  void __tsan_unaligned_write##bytes(void* at) { touch(at, bytes, 1); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16) void __tsan_read_range(void* at, size_t bytes) {
  touch(at, bytes, 0);
}
void __tsan_write_range(void* at, size_t bytes) { touch(at, bytes, 1); }
}
