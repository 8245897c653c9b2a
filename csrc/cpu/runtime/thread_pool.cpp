#include "thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ifan {
namespace {

// While this lives, the thread takes subnormal numbers for zeros and makes none: Intel's processors spend over a
// hundred cycles on each.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  using Mode = unsigned;
  static constexpr Mode kFlush = 0x8040;  // results (FTZ) and operands (DAZ)
  static Mode mode() { return _mm_getcsr(); }
  static void set(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static constexpr Mode kFlush = 1 << 24;
  static Mode mode() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  using Mode = unsigned;
  static constexpr Mode kFlush = 0;
  static Mode mode() { return 0; }
  static void set(Mode) {}
#endif

  FlushSubnormals() : before_(mode()) { set(before_ | kFlush); }
  ~FlushSubnormals() { set(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  const Mode before_;
};

struct Job {
  int64_t count, grain;
  Body body;
  void* context;
  std::atomic<int64_t> next{0};

  void work() {
    const FlushSubnormals flush;
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      body(context, begin, std::min(begin + grain, count));
    }
  }
};

class Pool {
 public:
  // False if another caller holds the pool.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> caller(caller_, std::try_to_lock);
    if (!caller.owns_lock()) return false;
    grow(helpers);
    {
      std::lock_guard<std::mutex> guard(state_);
      job_ = &job;
      places_ = helpers;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> guard(state_);
    places_ = 0;  // a helper that wakes this late has nothing left to do
    done_.wait(guard, [this] { return active_ == 0; });
    job_ = nullptr;
    return true;
  }

 private:
  void grow(int helpers) {
    try {
      for (; size_ < helpers; ++size_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {  // the system grants no more threads: those there and the caller do the work
    }
  }

  void serve() {
    std::unique_lock<std::mutex> guard(state_);
    for (;;) {
      wake_.wait(guard, [this] { return places_ > 0; });
      --places_;
      ++active_;
      Job* job = job_;
      guard.unlock();
      job->work();
      guard.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex caller_, state_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int places_ = 0, active_ = 0, size_ = 0;
};

// Never destroyed: its detached threads wait in it until the process ends.
std::atomic<Pool*> current{nullptr};

std::atomic<bool> forked{false};

// Threads do not survive a fork and their locks may be held for ever, so the child leaves the parent's alone.
void after_fork() {
  current.store(nullptr);
  forked.store(true);
}

Pool& pool() {
  Pool* existing = current.load();
  if (existing) return *existing;
  Pool* fresh = new Pool;
  if (current.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;  // another caller was first; this one has started no threads yet
  return *existing;
}

// The OpenMP threads that PyTorch has loaded and uses itself. They spin for a while after each of its operations: other
// threads beside them would have to share the cores with them.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

Parallel openmp() {
  static const Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// False if there is no OpenMP or another caller is in it.
bool run_by_openmp(Job& job, int threads) {
  static std::mutex caller;
  if (forked.load() || !openmp()) return false;
  std::unique_lock<std::mutex> guard(caller, std::try_to_lock);
  if (!guard.owns_lock()) return false;
  openmp()([](void* argument) { static_cast<Job*>(argument)->work(); }, &job, static_cast<unsigned>(threads), 0);
  return true;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, Body body, void* context) {
  const int64_t pieces = (count + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<int64_t>(threads, pieces)) - 1;
  if (helpers > 0) {
    Job job{count, grain, body, context};
    static const int registered = pthread_atfork(nullptr, nullptr, after_fork);
    (void)registered;
    if (run_by_openmp(job, helpers + 1)) return;
    if ((forked.load() || !openmp()) && pool().run(job, helpers)) return;
  }
  if (count > 0) {
    const FlushSubnormals flush;
    body(context, 0, count);
  }
}

}  // namespace ifan
