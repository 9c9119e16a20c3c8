// Loads and stores all classes of a tile: rows that lie apart in memory, or channels_last, which is transposed.
#pragma once

#include "elements.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace segfuse {
namespace {

#if defined(__AVX2__)
inline void transpose_square(const float* in, int64_t in_step, float* out, int64_t out_step, Count<8>) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in + i * in_step);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      a[i + 2 * k] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0x44);
      a[i + 2 * k + 1] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_step, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_step, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}
#endif
#if defined(__SSE2__)
inline void transpose_square(const float* in, int64_t in_step, float* out, int64_t out_step, Count<4>) {
  __m128 a[4];
  for (int i = 0; i < 4; ++i) a[i] = _mm_loadu_ps(in + i * in_step);
  _MM_TRANSPOSE4_PS(a[0], a[1], a[2], a[3]);
  for (int i = 0; i < 4; ++i) _mm_storeu_ps(out + i * out_step, a[i]);
}
// Transposes by squares. The last square of a row or column is shifted back, over its neighbour.
template <int kSide>
inline void transpose_by(const float* in, int64_t in_step, int64_t rows, int64_t columns, float* out,
                         int64_t out_step) {
  for (int64_t i = 0; i < rows; i += kSide)
    for (int64_t j = 0; j < columns; j += kSide) {
      const int64_t r = smaller(i, rows - kSide), c = smaller(j, columns - kSide);
      transpose_square(in + r * in_step + c, in_step, out + c * out_step + r, out_step, Count<kSide>());
    }
}
#endif

// out[column][row] = in[row][column].
template <class Real>
inline void transpose(const Real* in, int64_t in_step, int64_t rows, int64_t columns, Real* out, int64_t out_step) {
#if defined(__SSE2__)
  if constexpr (sizeof(Real) == 4) {
    const int64_t side = smaller(rows, columns);
#if defined(__AVX2__)
    if (side >= 8) return transpose_by<8>(in, in_step, rows, columns, out, out_step);
#endif
    if (side >= 4) return transpose_by<4>(in, in_step, rows, columns, out, out_step);
  }
#endif
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j * out_step + i] = in[i * in_step + j];
}

// Whether the classes of a position lie side by side, and the positions one after another (channels_last).
inline bool is_interleaved(const View& v, int64_t classes) {
  return v.class_stride == 1 && v.stride[v.dims - 1] == classes && classes > 1 && classes <= 512;
}

// The elements as an array of Real: the array itself if it is one, else a copy.
template <class Real>
inline const Real* as_real(const Real* p, int64_t, Real*) {
  return p;
}
template <class Element, class Real>
inline const Real* as_real(const Element* p, int64_t count, Real* copy) {
  load_run(p, 1, count, copy);
  return copy;
}

// Calls f(first element of a block in memory, an array for a copy, its place in the tile, its number of positions).
constexpr int64_t kBlockElements = 4096;
template <class Real, class Function>
inline void for_blocks(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, const Function& f) {
  Real block[kBlockElements];
  const int64_t most = kBlockElements / classes / 8 * 8;
  with_floating(v.dtype, v.data, [&](auto* data) {
    for_runs(v, n, 0, first, count, [&](int64_t offset, int64_t, int64_t at, int64_t run) {
      for (int64_t done = 0; done < run; done += most)
        f(data + offset + done * classes, block, at + done, smaller(most, run - done));
    });
  });
}

// All classes of a tile. The row of class c is at out + c step.
template <class Real>
inline void load_classes(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, Real* out,
                         int64_t step) {
  if (is_interleaved(v, classes))
    return for_blocks<Real>(v, n, first, count, classes, [&](auto* p, Real* block, int64_t at, int64_t positions) {
      transpose(as_real(p, positions * classes, block), classes, positions, classes, out + at, step);
    });
  for (int64_t c = 0; c < classes; ++c) load_floating(v, n, c, first, count, out + c * step);
}
template <class Real>
inline void store_classes(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, const Real* in,
                          int64_t step) {
  if (is_interleaved(v, classes))
    return for_blocks<Real>(v, n, first, count, classes, [&](auto* p, Real* block, int64_t at, int64_t positions) {
      if constexpr (std::is_same_v<decltype(p), Real*>) return transpose(in + at, step, classes, positions, p, classes);
      transpose(in + at, step, classes, positions, block, classes);
      store_run(p, 1, positions * classes, block);
    });
  for (int64_t c = 0; c < classes; ++c) store_floating(v, n, c, first, count, in + c * step);
}

}  // namespace
}  // namespace segfuse
