#include "isa.h"

#include <atomic>
#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ifan {

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::vector<Isa> compiled_isas() {
#if defined(__x86_64__)
  return {Isa::baseline, Isa::avx2, Isa::avx512};
#else
  return {Isa::baseline};
#endif
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512)
    return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::baseline;
}

bool has_bf16() {
#if defined(__x86_64__)
  return supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool has_tiles() {
#if defined(IFAN_POISON)
  return has_bf16();  // tiles.h does without
#elif defined(__x86_64__) && defined(__linux__)
  static const bool found = [] {
    unsigned a, b, c, d;
    const bool tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
    constexpr long kRequest = 0x1023,
                   kTileData = 18;  // ARCH_REQ_XCOMP_PERM, for all threads: Linux saves tiles of who asks for them
    return tiles && has_bf16() && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return found;
#else
  return false;
#endif
}

namespace {

std::atomic<bool> tiles_wanted{true};

Isa fastest() {
  Isa best = Isa::baseline;
  for (Isa isa : compiled_isas())
    if (supported(isa)) best = isa;
  return best;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{fastest()};
  return isa;
}

}  // namespace

bool uses_tiles() { return tiles_wanted.load() && has_tiles(); }
void use_tiles(bool wanted) { tiles_wanted.store(wanted); }
Isa current_isa() { return chosen().load(); }
void set_isa(Isa isa) { chosen().store(isa); }

std::string processor() {
#if defined(__x86_64__)
  unsigned words[12] = {};
  for (unsigned leaf = 0; leaf < 3; ++leaf)
    __get_cpuid(0x80000002u + leaf, &words[4 * leaf], &words[4 * leaf + 1], &words[4 * leaf + 2], &words[4 * leaf + 3]);
  char brand[sizeof words + 1] = {};
  std::memcpy(brand, words, sizeof words);
  std::string text(brand);
  text.erase(0, text.find_first_not_of(' '));
  text.erase(text.find_last_not_of(' ') + 1);
  return text.empty() ? "x86-64" : text;
#else
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
#if defined(__aarch64__)
  return "aarch64";
#else
  return "unknown";
#endif
#endif
}

}  // namespace ifan
