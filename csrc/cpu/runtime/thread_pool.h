// The threads shared by all CPU kernels: those of PyTorch's OpenMP where it has loaded one, else a small pool of our
// own.
//
// The range [0, count) is handed out in pieces of `grain`; which thread takes which piece is left open, so a kernel
// gives the same bits for any number of threads if what it computes for an index depends on nothing but the index.
// Meanwhile subnormal numbers count as zeros (and only then: each thread's own mode comes back).
// Safe after fork (the child starts its own threads) and when several callers arrive at once (the later ones run
// alone).
#pragma once
#include <cstdint>

namespace ifan {

using Body = void (*)(void* context, int64_t begin, int64_t end);

void parallel_for(int64_t count, int64_t grain, int threads, Body body, void* context);

}  // namespace ifan
