// A matrix to panels that the inner loop of a product reads from first byte to last.

#pragma once

#include <utility>

#include "vectors.h"

namespace {

// Lanes I of a and b, those of b counted on from those of a.
template <class V, int... I> ES_INLINE V shuffled(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){I...});  // the other one is new in GCC 12
#endif
}

// One stage of a transposition in registers: of two rows S apart, exchange the quarter off the diagonal.
template <int S, class V, int... I> ES_INLINE void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  const V upper = shuffled(a, b, std::integer_sequence<int, (I & S ? L + I - S : I)...>());
  b = shuffled(a, b, std::integer_sequence<int, (I & S ? L + I : I + S)...>());
  a = upper;
}

template <class T, int S> ES_INLINE void transpose(Vec<T> (&v)[LANES<T>]) {
  if constexpr (S < LANES<T>) {
    ES_UNROLL for (int i = 0; i < LANES<T>; ++i)
      if (!(i & S)) exchange<S>(v[i], v[i + S], std::make_integer_sequence<int, LANES<T>>());
    transpose<T, 2 * S>(v);
  }
}

// A square of one vector by one vector, from rows of the transposed matrix into rows of a panel.
template <class T> void square(const T* from, int64_t stride, T* to) {
  Vec<T> v[LANES<T>];
  ES_UNROLL for (int i = 0; i < LANES<T>; ++i) v[i] = load(from + i * stride);
  transpose<T, 1>(v);
  ES_UNROLL for (int i = 0; i < LANES<T>; ++i) store<T>(to + i * PANEL<T>, v[i]);
}

// Rows k0 to k1 of the panel that begins with column n0.
template <class T>
void pack_part(const T* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, T* out, int64_t n0, int64_t k0,
               int64_t k1) {
  constexpr int64_t L = LANES<T>, NR = PANEL<T>;
  const int64_t n = N - n0 < NR ? N - n0 : NR;
  for (int64_t k = k0; k < k1;) {
    const T* from = W + k * stride_k + n0 * stride_n;
    T* to = out + n0 * K + k * NR;
    if (n == NR && stride_n == 1) {
      ES_UNROLL for (int v = 0; v < VECTORS; ++v) store<T>(to + v * L, load(from + v * L));
      k += 1;
    } else if (n == NR && stride_k == 1 && k + L <= k1) {
      for (int v = 0; v < VECTORS; ++v) square(from + v * L * stride_n, stride_n, to + v * L);
      k += L;
    } else if (stride_n == 1) {
      __builtin_memcpy(to, from, n * sizeof(T));
      for (int64_t j = n; j < NR; ++j) to[j] = T(0);
      k += 1;
    } else {
      for (int64_t j = 0; j < NR; ++j) to[j] = j < n ? from[j * stride_n] : T(0);
      k += 1;
    }
  }
}

template <class T> void pack(const T* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, T* out) {
  // Along the memory of W: few streams, which the processor can foresee, and few pages at a time.
  const int64_t tall = stride_k == 1 ? K : 16;
  for (int64_t k = 0; k < K; k += tall)
    for (int64_t n = 0; n < N; n += PANEL<T>)
      pack_part(W, K, N, stride_k, stride_n, out, n, k, k + tall < K ? k + tall : K);
}

}  // namespace
