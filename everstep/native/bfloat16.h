// Products of numbers in bfloat16, added up in float32.

#pragma once

#include "gemm.h"

namespace {

// To the nearest bfloat16, ties to even.
ES_INLINE uint32_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x == x ? rounded : 0x7fc0;
}

// Two neighbours in the place of a float, which is never read as one.
ES_INLINE void put_pair(float* to, float first, float second) {
  const uint32_t bits = to_bf16(first) | to_bf16(second) << 16;
  __builtin_memcpy(to, &bits, 4);
}

// K numbers as pairs, the last one with a zero where K is odd.
inline void row_to_bf16(const float* from, int64_t K, float* to) {
  for (int64_t k = 0; k < K / 2; ++k) put_pair(to + k, from[2 * k], from[2 * k + 1]);
  if (K % 2) put_pair(to + K / 2, from[K - 1], 0);
}

// Panels as of `pack`, of pairs.
inline void pack_pairs(const float* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, float* out) {
  constexpr int64_t NR = PANEL<float>;
  const int64_t pairs = (K + 1) / 2;
  for (int64_t n0 = 0; n0 < N; n0 += NR) {
    const int64_t n = N - n0 < NR ? N - n0 : NR;
    const float* from = W + n0 * stride_n;
    float* to = out + n0 * pairs;
    if (n < NR) __builtin_memset(to, 0, pairs * NR * sizeof *to);
    if (stride_n == 1) {
      for (int64_t k = 0; k < K / 2; ++k)
        for (int64_t j = 0; j < n; ++j)
          put_pair(to + k * NR + j, from[2 * k * stride_k + j], from[(2 * k + 1) * stride_k + j]);
    } else {
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < K / 2; ++k) {
          const float* two = from + j * stride_n + 2 * k * stride_k;
          put_pair(to + k * NR + j, two[0], two[stride_k]);
        }
    }
    if (K % 2)
      for (int64_t j = 0; j < n; ++j) put_pair(to + K / 2 * NR + j, from[(K - 1) * stride_k + j * stride_n], 0);
  }
}

__attribute__((noinline)) inline void chunk_bf16(const float* A, int64_t lda, int64_t M, const float* W, int64_t apart,
                                                  int64_t K, int64_t N, int64_t p, int64_t last, float* C, int64_t ldc,
                                                  bool sum) {
  constexpr int64_t stride = (CHUNK_BYTES + 64) / sizeof(float);
  float copy[CHUNK_ROWS * stride];
  for (int64_t m = 0; m < M; ++m) row_to_bf16(A + m * lda, K, copy + m * stride);
  chunk<float, false, true>(copy, stride, M, W, apart, (K + 1) / 2, N, p, last, C, ldc, sum);
}

// As `gemm`, both factors rounded to bfloat16.
inline void gemm_bf16(const float* A, int64_t lda, int64_t M, const float* W, int64_t K, int64_t N, int64_t first,
                       int64_t last, float* C, int64_t ldc, bool add) {
  constexpr int64_t NR = PANEL<float>, most = 2 * (CHUNK_BYTES / int64_t(sizeof(float)));
  const int64_t panels = (N + NR - 1) / NR;
  if (last > panels) last = panels;
  if (M <= 0 || first >= last) return;
  const int64_t chunks = (M + CHUNK_ROWS - 1) / CHUNK_ROWS, rows = (M + chunks - 1) / chunks;
  for (int64_t m = 0; m < M; m += rows) {
    const int64_t n = m + rows < M ? rows : M - m;
    int64_t k = 0;
    do {
      const int64_t length = k + most < K ? most : K - k;
      chunk_bf16(A + m * lda + k, lda, n, W + k / 2 * NR, (K + 1) / 2 * NR, length, N, first, last, C + m * ldc, ldc,
                  add || k > 0);
      k += length;
    } while (k < K);
  }
}

}  // namespace
