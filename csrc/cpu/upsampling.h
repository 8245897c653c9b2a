// Bilinear interpolation (align_corners = False) of rows of logits to rows of labels, and the gradient's way back.
//
// Along y, labels between two rows of logits read both. Along x, where the labels are a whole number R of times finer,
// the pixels are ordered by their phase: pixel R i + p at p * columns + i. All pixels of a phase lie at the same
// distance between logits i - 1 and i, or i and i + 1, so interpolating and gathering are loops over neighbouring
// values with two constant weights. Other ratios look up each pixel's place.
#pragma once
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

// A value between values `first` and `first + 1`, as far from the first as `share` says; rest = 1 - share.
struct Tap {
  int32_t first;
  float share, rest;
};

inline Tap tap(int64_t first, double share) {
  return {static_cast<int32_t>(first), static_cast<float>(share), static_cast<float>(1 - share)};
}

inline Tap tap_of(int64_t place, int64_t from, int64_t to) {
  double at = (static_cast<double>(place) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5;
  at = at < 0 ? 0 : at;
  const int64_t first = static_cast<int64_t>(at);
  return first < from - 1 ? tap(first, at - static_cast<double>(first)) : tap(from - 1, 0);
}

inline int64_t whole_vectors(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

// From `from` values to `to`.
struct Axis {
  int64_t from, to, phases, columns, early;  // early: phases that lie between logits i - 1 and i
  const Tap* taps;                           // of each pixel, or of each phase counted from logit i - 1 or i

  static Axis of(int64_t from, int64_t to, Tap* taps) {  // taps: room for `to`
    Axis a{from, to, to % from == 0 && from >= 4 ? to / from : 0, whole_vectors(from), 0, taps};
    for (int64_t x = 0; x < (a.phases ? a.phases : to); ++x) {
      taps[x] = tap_of(x, from, to);
      const double at = (static_cast<double>(x) + 0.5) / static_cast<double>(a.phases) - 0.5;
      if (a.phases) taps[x] = tap(0, at < 0 ? at + 1 : at), a.early += at < 0;
    }
    return a;
  }
  int64_t pixels() const {
    return phases ? phases * columns : whole_vectors(to);
  }  // whole vectors; some stand for nothing
  int64_t row() const { return columns + 2 * kWidth; }  // floats of a row with its margins

  // A row of logits between two others, with margins: the outermost values repeated.
  void blend_rows(const float* a, const float* b, const Tap& y, float* row) const {
    row += kWidth;
    for (int64_t i = 0; i < from; ++i) row[i] = a[i] * y.rest + b[i] * y.share;
    row[-1] = row[0], row[from] = row[from - 1];
  }

  void interpolate(const float* row, float* pixels) const {
    row += kWidth;
    if (!phases) {
      for (int64_t x = 0; x < to; ++x)
        pixels[x] = row[taps[x].first] * taps[x].rest + row[taps[x].first + 1] * taps[x].share;
      return;
    }
    for (int64_t p = 0; p < phases; ++p) {
      const float a = taps[p].rest, b = taps[p].share, *left = row - (p < early);
      for (int64_t i = 0; i < columns; i += kWidth)
        store(pixels + p * columns + i, load(left + i) * a + load(left + i + 1) * b);
    }
  }

  void by_phase(const uint8_t* labels, int32_t* pixels) const {
    if (!phases)
      for (int64_t x = 0; x < to; ++x) pixels[x] = labels[x];
    for (int64_t p = 0; p + 4 <= phases; p += 4) four_phases(labels + p, pixels + p * columns);
    for (int64_t p = phases / 4 * 4; p < phases; ++p)
      for (int64_t i = 0; i < from; ++i) pixels[p * columns + i] = labels[i * phases + p];
  }

  // Adds the pixels' gradient to the two rows of logits, `upper` and `lower`, that blend_rows() read. A row is three of
  // `columns` values: what belongs to the logit on the left of its place, to the one there and to the one on the right.
  void gather(const float* pixels, const Tap& y, float* upper, float* lower, float* buffer) const {
    if (!phases) {
      for (int64_t i = 0; i < 3 * columns; ++i) buffer[i] = 0;
      for (int64_t x = 0; x < to; ++x) {
        buffer[columns + taps[x].first] += pixels[x] * taps[x].rest;
        buffer[2 * columns + taps[x].first] += pixels[x] * taps[x].share;
      }
      for (int64_t i = 0; i < 3 * columns; i += kWidth) add(load(buffer + i), y, upper + i, lower + i);
      return;
    }
    for (int64_t i = 0; i < columns; i += kWidth) {
      Vec left{}, here{}, right{};
      for (int64_t p = 0; p < early; ++p) {
        const Vec g = load(pixels + p * columns + i);
        left += g * taps[p].rest, here += g * taps[p].share;
      }
      for (int64_t p = early; p < phases; ++p) {
        const Vec g = load(pixels + p * columns + i);
        here += g * taps[p].rest, right += g * taps[p].share;
      }
      add(left, y, upper + i, lower + i);
      add(here, y, upper + columns + i, lower + columns + i);
      add(right, y, upper + 2 * columns + i, lower + 2 * columns + i);
    }
  }

  // The gradient of a row of logits from its three parts.
  void add_parts(const float* parts, float* out) const {
    const float *left = parts, *here = parts + columns, *right = parts + 2 * columns;
    for (int64_t i = 0; i < from; ++i)
      out[i] = here[i] + (i + 1 < from ? left[i + 1] : right[i]) + (i ? right[i - 1] : left[0]);
  }

 private:
  static void add(Vec g, const Tap& y, float* upper, float* lower) {
    store(upper, load(upper) + g * y.rest);
    store(lower, load(lower) + g * y.share);
  }

  // Four phases by one load of four bytes a logit.
  void four_phases(const uint8_t* labels, int32_t* pixels) const {
    int32_t* word = pixels + 3 * columns;
    for (int64_t i = 0; i < from; ++i) __builtin_memcpy(word + i, labels + i * phases, 4);
    for (int64_t i = from; i < columns; ++i) word[i] = -1;  // four times the ignored label
    for (int64_t i = 0; i < from; i += kWidth) {
      Lanes<kWidth>::Int four;
      __builtin_memcpy(&four, word + i, sizeof four);
      for (int64_t p = 0; p < 4; ++p) {
        const Lanes<kWidth>::Int labels_of = (four >> static_cast<int32_t>(8 * p)) & 255;
        __builtin_memcpy(pixels + p * columns + i, &labels_of, sizeof labels_of);
      }
    }
  }
};

}  // namespace IFAN_ISA
}  // namespace ifan
