#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace ifan {
namespace {

constexpr int kSpins = 2000;  // some 50 us: the kernels of a plan follow each other within a few, waking a thread takes longer

// Waits briefly, without giving the core away, for a condition that another thread is about to make true.
template <typename Condition>
void spin_until(Condition condition) {
  for (int i = 0; i < kSpins && !condition(); ++i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }
}

struct Job {
  int64_t count, grain;
  Body body;
  void* context;
  std::atomic<int64_t> next{0};

  void work() {
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
    bool asleep;
    {
      std::lock_guard<std::mutex> guard(state_);
      job_ = &job;
      places_ = helpers;
      asleep = sleepers_ > 0;
    }
    if (asleep) wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> guard(state_);
    places_ = 0;  // a helper that wakes this late has nothing left to do
    guard.unlock();
    spin_until([this] { return active_ == 0; });
    guard.lock();
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
    for (;;) {
      spin_until([this] { return places_ > 0; });
      std::unique_lock<std::mutex> guard(state_);
      ++sleepers_;
      wake_.wait(guard, [this] { return places_ > 0; });
      --sleepers_;
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
  std::atomic<int> places_{0}, active_{0};  // changed under the lock, watched without it
  int sleepers_ = 0, size_ = 0;
};

// Never destroyed: its detached threads wait in it until the process ends.
std::atomic<Pool*> current{nullptr};

// Threads do not survive a fork and its locks may be held for ever, so the child leaves the parent's pool alone.
void forget_pool() { current.store(nullptr); }

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  Pool* existing = current.load();
  if (existing) return *existing;
  Pool* fresh = new Pool;
  if (current.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;  // another caller was first; this one has started no threads yet
  return *existing;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, Body body, void* context) {
  const int64_t pieces = (count + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<int64_t>(threads, pieces)) - 1;
  if (helpers > 0) {
    Job job{count, grain, body, context};
    if (pool().run(job, helpers)) return;
  }
  if (count > 0) body(context, 0, count);
}

}  // namespace ifan
