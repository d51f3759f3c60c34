// Vectors of numbers, as wide as the processor has them, and how much of a product is worked on at once.

#pragma once

#include <cstdint>

#define ES_ALWAYS __attribute__((always_inline))
#define ES_INLINE inline ES_ALWAYS
#if defined(__clang__)
#define ES_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ES_UNROLL _Pragma("GCC unroll 64")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
// Rows of the largest block: two accumulators a row, two registers for the weights, one or two for the row's element.
constexpr int ROWS = REGISTERS / 2 - 2;

constexpr int VECTORS = 2;             // in a row of a panel
constexpr int64_t CHUNK_ROWS = 64;     // rows of A worked on at once …
constexpr int64_t CHUNK_BYTES = 4096;  // … and bytes of each: at most a quarter of a megabyte, beside a panel in L2

// Of a product over steps: steps in a chain, columns that are rows of C and bytes of the others, packed in L2 at once.
constexpr int64_t STEPS = 256;
constexpr int64_t ACROSS_ROWS = 5 * ROWS;
constexpr int64_t ACROSS_BYTES = 1 << 19;

template <class T> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(BYTES))); };
template <> struct Vector<double> { typedef double type __attribute__((vector_size(BYTES))); };
template <class T> using Vec = typename Vector<T>::type;
template <class T> constexpr int LANES = BYTES / int(sizeof(T));
template <class T> constexpr int PANEL = VECTORS * LANES<T>;

template <class T> ES_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T> ES_INLINE void store(T* to, Vec<T> v) { __builtin_memcpy(to, &v, sizeof v); }

// x - 0 is x for every x, -0 included, so compilers fold it into a bare broadcast; x + 0 is not, and they cannot.
template <class T> ES_INLINE Vec<T> splat(T x) { return x - Vec<T>{}; }

// c += a * b, fused. Written out on x86: GCC splits such chains into multiply and add when it tunes for some
// processors, and it folds the loads of b back into every use, which doubles the traffic to L1.
#if defined(__x86_64__) && defined(__FMA__)
ES_INLINE void fma(Vec<float>& c, Vec<float> a, Vec<float> b) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
}
ES_INLINE void fma(Vec<double>& c, Vec<double> a, Vec<double> b) {
  asm("vfmadd231pd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
}
#else
template <class V> ES_INLINE void fma(V& c, V a, V b) { c += a * b; }
#endif

// c += a * b of pairs: every number of a and b is two neighbours of K in bfloat16, whose products are added in float.
#if defined(__AVX512BF16__)
constexpr bool HAS_BF16 = true;
ES_INLINE void fma_pairs(Vec<float>& c, Vec<float> a, Vec<float> b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
}
#else
constexpr bool HAS_BF16 = false;
ES_INLINE void fma_pairs(Vec<float>& c, Vec<float> a, Vec<float> b) { c += a * b; }  // never called
#endif

}  // namespace
