// Where the disc of a point lies.
#pragma once
#include <math.h>

#include <cstdint>

namespace ifan {
namespace IFAN_ISA {

// The pixel in the middle; half to even, as the release rounds.
inline float centre(float point, int64_t size) { return nearbyintf((point + 0.5f) * static_cast<float>(size)); }

}  // namespace IFAN_ISA
}  // namespace ifan
