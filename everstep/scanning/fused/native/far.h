// Stores past the caches, for numbers that are not read again soon: a plain store first reads the line that it fills.

#include <stdint.h>

#if defined(__AVX512F__)
#define ES_FAR_BYTES 64
#elif defined(__AVX__)
#define ES_FAR_BYTES 32
#elif defined(__SSE2__)
#define ES_FAR_BYTES 16
#endif

#ifdef ES_FAR_BYTES
typedef float es_far_line __attribute__((vector_size(ES_FAR_BYTES), may_alias));

static inline void es_far_store(float* to, es_far_line v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, (es_far_line*)to);
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(to, v);
#elif defined(__AVX__)
  __builtin_ia32_movntps256(to, v);
#else
  __builtin_ia32_movntps(to, v);
#endif
}
#endif

// Copy n numbers.
template <class T> static inline void es_far(T* to, const T* from, int64_t n) {
  int64_t j = 0;
#ifdef ES_FAR_BYTES
  constexpr int64_t L = ES_FAR_BYTES / sizeof(T);
  for (; j < n && (uintptr_t)(to + j) % ES_FAR_BYTES; ++j) to[j] = from[j];
  for (; j + L <= n; j += L) {
    es_far_line v;
    __builtin_memcpy(&v, from + j, sizeof v);
    es_far_store((float*)(to + j), v);
  }
#endif
  for (; j < n; ++j) to[j] = from[j];
}

// Such stores become visible in any order, but all of them before what follows this.
static inline void es_far_done(void) {
#ifdef ES_FAR_BYTES
  __builtin_ia32_sfence();
#endif
}
