// Stores past the caches, for numbers that are not read again soon: a plain store first reads the line that it fills.

#include <stdint.h>

#if defined(__AVX512F__)
#define ES_NONTEMPORAL_BYTES 64
#elif defined(__AVX__)
#define ES_NONTEMPORAL_BYTES 32
#elif defined(__SSE2__)
#define ES_NONTEMPORAL_BYTES 16
#endif

#ifdef ES_NONTEMPORAL_BYTES
typedef float es_nontemporal_line __attribute__((vector_size(ES_NONTEMPORAL_BYTES), may_alias));

// A line of numbers, which need not begin where lines do.
template <class T> struct es_line;
template <> struct es_line<float> { typedef float type __attribute__((vector_size(ES_NONTEMPORAL_BYTES))); };
template <> struct es_line<double> { typedef double type __attribute__((vector_size(ES_NONTEMPORAL_BYTES))); };

template <class V, class T> static inline V es_get(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class T> static inline void es_put(T* to, V v) { __builtin_memcpy(to, &v, sizeof v); }
template <class V, class T> static inline V es_all(T x) {
  V v;
  for (int j = 0; j < int(sizeof(V) / sizeof(T)); ++j) v[j] = x;
  return v;
}
template <int N> struct es_count { static constexpr int value = N; };

// For what is unrolled.
#if defined(__clang__)
#define ES_EACH _Pragma("unroll")
#else
#define ES_EACH _Pragma("GCC unroll 16")
#endif

// Where a line begins.
template <class T, class V> static inline void es_nontemporal_store(T* to, V v) {
  const es_nontemporal_line line = (es_nontemporal_line)v;
#if defined(__clang__)
  __builtin_nontemporal_store(line, (es_nontemporal_line*)to);
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512((float*)to, line);
#elif defined(__AVX__)
  __builtin_ia32_movntps256((float*)to, line);
#else
  __builtin_ia32_movntps((float*)to, line);
#endif
}
#endif

// Copy n numbers.
template <class T> static inline void es_nontemporal_copy(T* to, const T* from, int64_t n) {
  int64_t j = 0;
#ifdef ES_NONTEMPORAL_BYTES
  constexpr int64_t L = ES_NONTEMPORAL_BYTES / sizeof(T);
  for (; j < n && (uintptr_t)(to + j) % ES_NONTEMPORAL_BYTES; ++j) to[j] = from[j];
  for (; j + L <= n; j += L) {
    es_nontemporal_store(to + j, es_get<es_nontemporal_line>(from + j));
  }
#endif
  for (; j < n; ++j) to[j] = from[j];
}

// Such stores become visible in any order, but all of them before what follows this.
static inline void es_nontemporal_done(void) {
#ifdef ES_NONTEMPORAL_BYTES
  __builtin_ia32_sfence();
#endif
}
