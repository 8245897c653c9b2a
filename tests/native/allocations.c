// Preloaded into a process: counts what it takes from glibc's allocator, on all threads. See test_allocations.py.
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

static _Atomic size_t calls, large_bytes;
enum { kLarge = 1024 };  // bytes from which on a block counts as large

static void note(size_t bytes) {
  atomic_fetch_add(&calls, 1);
  if (bytes >= kLarge) atomic_fetch_add(&large_bytes, bytes);
}

size_t allocation_calls(void) { return atomic_load(&calls); }
size_t allocation_large_bytes(void) { return atomic_load(&large_bytes); }

void* malloc(size_t bytes) { return note(bytes), __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return note(count * bytes), __libc_calloc(count, bytes); }
void* realloc(void* p, size_t bytes) { return note(bytes), __libc_realloc(p, bytes); }
void* memalign(size_t alignment, size_t bytes) { return note(bytes), __libc_memalign(alignment, bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) { return note(bytes), __libc_memalign(alignment, bytes); }
int posix_memalign(void** p, size_t alignment, size_t bytes) {
  note(bytes);
  *p = __libc_memalign(alignment, bytes);
  return *p ? 0 : ENOMEM;
}
