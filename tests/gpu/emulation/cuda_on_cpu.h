// Runs CUDA kernels on the CPU, for tests only. Blocks run one after another; the threads of a block are
//   fibres (default): deterministic; CUDA_EMU_ORDER=fwd|rev|rand is the order in which they and the blocks are taken,
//   and with `lag` the first warp falls behind, as far as barriers let it;
//   OS threads (-DCUDA_EMU_THREADS): for -fsanitize=thread, which then names a missing barrier.
// Found: wrong values; a missing barrier (by the order, or ThreadSanitizer); barriers and shuffles that not all threads
// reach (a deadlock, reported with file:line); reads of unset shared memory (it starts as NaN in every block); accesses
// out of bounds (-fsanitize=address: each shared array is heap memory of its exact size). Not modelled: memory order,
// blocks at the same time, speed. `mma` computes with the fragment layout of the PTX manual as it is written down here,
// so a misreading of the manual shared by kernel and emulation would not be found.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>
#ifdef CUDA_EMU_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <setjmp.h>
#include <ucontext.h>
#endif
#include "cuda_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ error_use_SHARED_ARRAY /* a plain static would keep the last block's values and hide bugs */
#define SHARED_ARRAY(T, name, n)                      \
  static const size_t name##_site = emu::new_array(); \
  T* const name = emu::shared_array<T>(name##_site, n)

inline thread_local uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim, gridDim;

namespace emu {

struct Barrier {
  unsigned mask = 0;
  int arrived = 0;
  unsigned generation = 0;
  const char* where = nullptr;
  char token[2] = {};  // what the even and the odd generations order, for ThreadSanitizer
};
struct Warp {
  unsigned char slot[32][32];
  std::vector<Barrier> barriers;
};

// The running block.
struct Block {
  std::vector<Warp> warps;
  Barrier all;
  int threads = 0, live = 0, asleep = 0;  // asleep: arrived at a barrier that has not been released
  std::exception_ptr error;
};
inline Block& block() {
  static Block b;
  return b;
}
inline std::deque<std::vector<unsigned char>>& arrays() {
  static std::deque<std::vector<unsigned char>> a;
  return a;
}
inline thread_local int linear = 0;  // index of the running thread in its block
inline int lane() { return linear % 32; }
inline Warp& warp() { return block().warps[linear / 32]; }
struct Stopped {};  // thrown through the threads of a block in which another one failed

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer must not take the engine's own lock for an order of the kernel's accesses: only barriers make one.
extern "C" {
void AnnotateHappensBefore(const char*, int, const void*);
void AnnotateHappensAfter(const char*, int, const void*);
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
inline void publish(const void* token) { AnnotateHappensBefore(__FILE__, __LINE__, token); }
inline void observe(const void* token) { AnnotateHappensAfter(__FILE__, __LINE__, token); }
struct Unseen {
  Unseen() {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }
};
#else
inline void publish(const void*) {}
inline void observe(const void*) {}
struct Unseen {
  Unseen() {}
};
#endif

#ifdef CUDA_EMU_THREADS
inline std::mutex& mutex() {
  static std::mutex m;
  return m;
}
inline std::condition_variable& changed() {
  static std::condition_variable c;
  return c;
}
struct Guard {
  Unseen unseen;
  std::unique_lock<std::mutex> lock{mutex()};
  void pause() {
    changed().wait(lock);
    if (block().error) throw Stopped();
  }
};
inline void wake() { changed().notify_all(); }
#else
void suspend();
struct Guard {
  Guard() {}
  void pause() { suspend(); }
};
inline void wake() {}
#endif

inline void release(Barrier& b, int expected) {
  if (!b.arrived || b.arrived < expected) return;
  block().asleep -= b.arrived;
  b.arrived = 0;
  b.where = nullptr;
  ++b.generation;
  wake();
}

inline void fail_if_stuck() {
  Block& b = block();
  if (!b.live || b.asleep < b.live) return;
  std::string text = "deadlock in block " + std::to_string(blockIdx.x) + ": " + std::to_string(b.threads - b.live) +
                     " of " + std::to_string(b.threads) + " threads have exited;";
  if (b.all.arrived) text += " " + std::to_string(b.all.arrived) + " wait at " + b.all.where + ";";
  for (const Warp& w : b.warps)
    for (const Barrier& at : w.barriers)
      if (at.arrived) text += " " + std::to_string(at.arrived) + " wait at " + at.where + ";";
  throw std::runtime_error(text);
}

// Expected is asked again after a pause: threads that have exited no longer count at a block's barrier.
template <class Expected>
void wait(Barrier& b, Expected expected, const char* where) {
  unsigned generation;
  {
    Unseen unseen;
    generation = b.generation;  // does not advance without this thread
  }
  publish(&b.token[generation % 2]);
  {
    Guard guard;
    if (b.arrived && b.where != where)
      throw std::runtime_error(std::string("threads wait at different barriers: ") + b.where + " and " + where);
    b.where = where;
    ++b.arrived;
    ++block().asleep;
    release(b, expected());
    while (b.generation == generation) {
      fail_if_stuck();
      guard.pause();
    }
  }
  observe(&b.token[generation % 2]);
}

inline void sync_block(const char* where) {
  wait(block().all, [] { return block().live; }, where);
}

// The barrier of the calling lane's warp for this mask.
inline Barrier& barrier_of(unsigned mask, const char* where) {
  Guard guard;
  if (!(mask >> lane() & 1)) throw std::runtime_error(std::string("the calling lane is not in the mask at ") + where);
  std::vector<Barrier>& all = warp().barriers;
  auto found = std::find_if(all.begin(), all.end(), [&](const Barrier& b) { return b.mask == mask; });
  if (found != all.end()) return *found;
  if (all.size() == all.capacity()) throw std::runtime_error(std::string("more than 64 shuffle masks at ") + where);
  all.emplace_back();
  all.back().mask = mask;
  return all.back();
}

inline void sync_warp(unsigned mask, const char* where) {
  const int left = block().threads - (linear - lane());
  const int lanes = __builtin_popcount(left >= 32 ? mask : mask & ((1u << left) - 1));
  wait(barrier_of(mask, where), [lanes] { return lanes; }, where);  // strict: every named lane must come
}

// Every lane of the mask publishes a value; `read` then sees those of all.
template <class T, class Read>
auto exchange(unsigned mask, const T& value, const char* where, Read read) {
  static_assert(sizeof(T) <= sizeof(Warp::slot[0]), "");
  std::memcpy(warp().slot[lane()], &value, sizeof value);
  sync_warp(mask, where);
  const auto result = read([mask](int from) {
    T found;
    if (mask >> from & 1)
      std::memcpy(&found, warp().slot[from], sizeof found);
    else
      std::memset(static_cast<void*>(&found), 0xff, sizeof found);
    return found;
  });
  sync_warp(mask, where);
  return result;
}
template <class T>
T shuffle(unsigned mask, T value, int from, const char* where) {
  return exchange(mask, value, where, [from](auto of_lane) { return of_lane(from); });
}

// D += A B of m16n8k16: four of D's values are this lane's. The fragment layout is that of the PTX manual, 9.7.14.
struct Fragments {
  uint32_t a[4], b[2];
};
template <class Widen>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Widen widen, const char* where) {
  Fragments mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const auto half = [&](const uint32_t* registers, int index) {
    return widen(static_cast<uint16_t>(registers[index / 2] >> index % 2 * 16));
  };
  struct Sums {
    float of[4];
  };
  const Sums sums = exchange(0xffffffffu, mine, where, [&](auto of_lane) {
    Fragments lanes[32];
    for (int from = 0; from < 32; ++from) lanes[from] = of_lane(from);
    Sums found;
    for (int i = 0; i < 4; ++i) {
      const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        const int from = k % 8 / 2;  // the lane's number in its group of four
        const float left = half(lanes[row % 8 * 4 + from].a, (row / 8 + k / 8 * 2) * 2 + k % 2);
        sum += left * half(lanes[column * 4 + from].b, k / 8 * 2 + k % 2);
      }
      found.of[i] = sum;
    }
    return found;
  });
  for (int i = 0; i < 4; ++i) d[i] += sums.of[i];
}

inline size_t new_array() {
  Guard guard;
  arrays().emplace_back();
  return arrays().size() - 1;
}
template <class T>
T* shared_array(size_t site, size_t n) {
  Guard guard;
  std::vector<unsigned char>& memory = arrays()[site];
  if (memory.size() != n * sizeof(T)) memory.assign(n * sizeof(T), 0xff);
  return reinterpret_cast<T*>(memory.data());
}

inline void prepare_block() {
  Block& b = block();
  b.live = b.threads;
  b.asleep = 0;
  b.all = Barrier();
  b.error = nullptr;
  for (Warp& w : b.warps) {
    w.barriers.clear();
    w.barriers.reserve(64);  // references into it stay valid
  }
  for (std::vector<unsigned char>& memory : arrays()) std::fill(memory.begin(), memory.end(), 0xff);
}

// The whole life of one thread of the block.
template <class Body>
void run_thread(int index, Body& body) {
  linear = index;
  threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
  std::exception_ptr error;
  try {
    body();
  } catch (const Stopped&) {
  } catch (...) {
    error = std::current_exception();
  }
  Guard guard;
  Block& b = block();
  --b.live;
  release(b.all, b.live);
  try {
    if (!error && !b.error) fail_if_stuck();
  } catch (...) {
    error = std::current_exception();
  }
  if (error && !b.error) b.error = error;
  wake();
}

#ifdef CUDA_EMU_THREADS
template <class Body>
void run_block(const std::vector<int>& order, Body& body) {
  std::vector<std::thread> threads;
  for (int index : order) threads.emplace_back([index, &body] { run_thread(index, body); });
  for (std::thread& thread : threads) thread.join();
}
#else
inline bool lagging = false;  // the first warp has one turn where the others have kAhead
#include "fibres.inc"
#endif

template <class Body>
void launch(dim3 grid, dim3 size, Body body) {
  static std::mt19937 random(1);
  const char* chosen = std::getenv("CUDA_EMU_ORDER");
  const std::string order = chosen ? chosen : "fwd";
#ifndef CUDA_EMU_THREADS
  lagging = order == "lag";
#endif
  Block& b = block();
  blockDim = size;
  gridDim = grid;
  b.threads = static_cast<int>(size.x * size.y * size.z);
  b.warps.resize((b.threads + 31) / 32);
  std::vector<int> threads(b.threads);
  for (int i = 0; i < b.threads; ++i) threads[i] = order == "rev" ? b.threads - 1 - i : i;
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned at = order == "rev" ? blocks - 1 - i : i;
    blockIdx = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
    if (order == "rand") std::shuffle(threads.begin(), threads.end(), random);
    prepare_block();
    run_block(threads, body);
    if (b.error) std::rethrow_exception(b.error);
  }
}

}  // namespace emu

#define EMU_TEXT2(x) #x
#define EMU_TEXT(x) EMU_TEXT2(x)
#define EMU_HERE __FILE__ ":" EMU_TEXT(__LINE__)
#define __syncthreads() emu::sync_block(EMU_HERE)
#define __shfl_xor_sync(mask, value, d) emu::shuffle(mask, value, emu::lane() ^ (d), EMU_HERE)

using std::max;
using std::min;

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  const dim3 &grid = config->gridDim, &size = config->blockDim;
  const unsigned threads = size.x * size.y * size.z;
  if (!grid.x || !grid.y || !grid.z || !threads || threads > 1024 || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  emu::launch(grid, size, [&] { kernel(static_cast<P>(arguments)...); });
  return cudaSuccess;
}
