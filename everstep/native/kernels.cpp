// Run-time library of the compiled engine: packed matrix products, a borrowed thread team and a barrier.
//
// The generated code of a cell multiplies a few rows (the batch) by a weight matrix at every step, so the weights are
// packed once per call into panels that the inner loop reads from first byte to last, and everything below is about
// reading them at the speed of the cache they lie in.
//
// Every element of a product is one chain of multiply-adds over k = 0, 1, 2, … that starts from zero (or from C). No
// kernel splits that chain (but for a single column, always in the same way), so a row's result depends neither on the
// other rows nor on how rows, panels and threads were divided: a padded batch equals its members alone, bit for bit.
// Keep it that way when tuning. (A product over steps, es_gemm_tn, adds up chains of some hundred steps; where they end
// depends on the number of steps alone.)
//
// Plain C interface; GCC or Clang vector extensions; compile with -std=gnu++17 -march=native, and with ES_F32, ES_F64 or
// ES_BF16 defined for the products of one kind of number alone, which takes a third of the time.

#include <cstdint>
#include <sched.h>
#include <utility>

#if !defined(ES_F32) && !defined(ES_F64) && !defined(ES_BF16)
#define ES_F32
#define ES_F64
#define ES_BF16
#endif

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

// ---------------------------------------------------------------------------------------------------------------- gemm

// M rows by P neighbouring panels. `apart` is the distance of two panels, `columns` how many columns of C there are
// from here on (fewer than P panels hold: the last one is partly padding), `sum` whether to start from C. With ACROSS,
// A is packed as K times M neighbours, `sum` adds the finished chain to C, and the way fetches a line for each of K, `lda`
// numbers apart, from `next` on: what is packed after this. With PAIRS, K counts pairs.
template <class T, int M, int P, bool ACROSS, bool PAIRS>
void block(const T* A, int64_t lda, const T* W, int64_t apart, int64_t K, T* C, int64_t ldc, int64_t columns, bool sum,
           const T* next) {
  constexpr int L = LANES<T>, R = P * VECTORS;
  constexpr int UNROLL = M * R <= 12 ? 4 : 1;  // a step of a large block hides the cost of its loop
  Vec<T> acc[M][R];
  const bool whole = columns >= P * PANEL<T>;
  if (ACROSS || !sum) {
    ES_UNROLL for (int m = 0; m < M; ++m) ES_UNROLL for (int r = 0; r < R; ++r) acc[m][r] = Vec<T>{};
  } else if (whole) {
    ES_UNROLL for (int m = 0; m < M; ++m) ES_UNROLL for (int r = 0; r < R; ++r) acc[m][r] = load(C + m * ldc + r * L);
  } else {
    ES_UNROLL for (int m = 0; m < M; ++m) {
      T row[R * L] = {};
      __builtin_memcpy(row, C + m * ldc, columns * sizeof(T));
      ES_UNROLL for (int r = 0; r < R; ++r) acc[m][r] = load(row + r * L);
    }
  }

  if (ACROSS && sum)  // C has not been seen since the chunk before
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; r += 64 / BYTES) __builtin_prefetch(C + m * ldc + r * L, 1);

  // One pointer for three rows (x86 addresses p, p + lda and p + 2 lda): fourteen would not fit its registers.
  constexpr int G = (M + 2) / 3;
  const T* rows[G];
  const int64_t next_lda = lda;
  if (ACROSS) {
    lda = 1;
    asm("" : "+r"(lda));  // GCC that knows the number takes other ways, and leaves the sums in memory
  }
  ES_UNROLL for (int g = 0; g < G; ++g) rows[g] = A + 3 * g * lda;
  const auto multiply = [&](Vec<T>& c, Vec<T> a, Vec<T> w) ES_ALWAYS {
    if constexpr (PAIRS)
      fma_pairs(c, a, w);
    else
      fma(c, a, w);
  };
  const auto element = [&](int m, int u) ES_ALWAYS {
    return splat(rows[m / 3][m % 3 * lda + (ACROSS ? u * M : u)]);
  };
  const auto advance = [&](int u) ES_ALWAYS {
    W += u * PANEL<T>;
    ES_UNROLL for (int g = 0; g < G; ++g) rows[g] += ACROSS ? u * M : u;
  };
  const auto step = [&](int u) ES_ALWAYS {
    if constexpr (M >= 8)  // the panel comes from L2
      ES_UNROLL for (int r = 0; r < VECTORS; ++r) __builtin_prefetch(W + (u + 32) * PANEL<T> + r * L);
    if constexpr (ACROSS) {
      __builtin_prefetch(next, 0, 2);
      next += next_lda;
    }
    if constexpr (M >= R) {
      Vec<T> w[R];
      ES_UNROLL for (int r = 0; r < R; ++r) w[r] = load(W + r / VECTORS * apart + (u * VECTORS + r % VECTORS) * L);
      ES_UNROLL for (int m = 0; m < M; ++m) {
        const Vec<T> a = element(m, u);
        ES_UNROLL for (int r = 0; r < R; ++r) multiply(acc[m][r], a, w[r]);
      }
    } else {
      Vec<T> a[M];
      ES_UNROLL for (int m = 0; m < M; ++m) a[m] = element(m, u);
      ES_UNROLL for (int r = 0; r < R; ++r) {
        const Vec<T> w = load(W + r / VECTORS * apart + (u * VECTORS + r % VECTORS) * L);
        ES_UNROLL for (int m = 0; m < M; ++m) multiply(acc[m][r], a[m], w);
      }
    }
  };
  int64_t k = K;
  for (; k >= UNROLL; k -= UNROLL) {
    ES_UNROLL for (int u = 0; u < UNROLL; ++u) step(u);
    advance(UNROLL);
  }
  for (; k > 0; --k) {
    step(0);
    advance(1);
  }

  if (ACROSS && sum && whole)
    ES_UNROLL for (int m = 0; m < M; ++m)
      ES_UNROLL for (int r = 0; r < R; ++r) acc[m][r] += load(C + m * ldc + r * L);
  if (whole) {
    ES_UNROLL for (int m = 0; m < M; ++m)
      ES_UNROLL for (int r = 0; r < R; ++r) store<T>(C + m * ldc + r * L, acc[m][r]);
  } else {
    ES_UNROLL for (int m = 0; m < M; ++m) {
      T row[R * L] = {};
      if (ACROSS && sum) {
        __builtin_memcpy(row, C + m * ldc, columns * sizeof(T));
        ES_UNROLL for (int r = 0; r < R; ++r) acc[m][r] += load(row + r * L);
      }
      ES_UNROLL for (int r = 0; r < R; ++r) store<T>(row + r * L, acc[m][r]);
      __builtin_memcpy(C + m * ldc, row, columns * sizeof(T));
    }
  }
}

// `all` in equal parts, the first ones longer by one where that does not come out even.
struct Even {
  int64_t all, parts;
  int64_t at(int64_t part) const { return all / parts * part + (part < all % parts ? part : all % parts); }
};

template <class T> using Block = void (*)(const T*, int64_t, const T*, int64_t, int64_t, T*, int64_t, int64_t, bool,
                                          const T*);

template <class T, bool ACROSS, bool PAIRS, int... M>
Block<T> block_of(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr Block<T> table[] = {block<T, M + 1, 1, ACROSS, PAIRS>...};
  return table[rows - 1];
}

// A few rows: a panel gives too few independent chains to hide the latency of an fma, so several are walked at once.
template <class T, int M, int P, bool ACROSS, bool PAIRS>
int64_t wide(const T* A, int64_t lda, const T* W, int64_t apart, int64_t K, int64_t N, int64_t p, int64_t last, T* C,
             int64_t ldc, bool sum) {
  for (; p + P <= last; p += P)
    block<T, M, P, ACROSS, PAIRS>(A, lda, W + p * apart, apart, K, C + p * PANEL<T>, ldc, N - p * PANEL<T>, sum, A);
  return p;
}

// A chunk: at most CHUNK_ROWS rows and CHUNK_BYTES of each. Panels outside, blocks of rows inside: the panel comes from
// L2 or beyond once and is near for all blocks but the first. With ACROSS blocks lie one after the other (lda is K), and
// the first panel fetches what is to be packed next, `next_lda` from one another.
template <class T, bool ACROSS = false, bool PAIRS = false>
void chunk(const T* A, int64_t lda, int64_t M, const T* W, int64_t apart, int64_t K, int64_t N, int64_t p, int64_t last,
           T* C, int64_t ldc, bool sum, const T* next = nullptr, int64_t next_lda = 0) {
  if (M == 1) p = wide<T, 1, 4, ACROSS, PAIRS>(A, lda, W, apart, K, N, p, last, C, ldc, sum);
  if (M == 1) p = wide<T, 1, 2, ACROSS, PAIRS>(A, lda, W, apart, K, N, p, last, C, ldc, sum);
  if (M == 2) p = wide<T, 2, 2, ACROSS, PAIRS>(A, lda, W, apart, K, N, p, last, C, ldc, sum);
  if constexpr (REGISTERS == 32) {
    if (M == 3) p = wide<T, 3, 2, ACROSS, PAIRS>(A, lda, W, apart, K, N, p, last, C, ldc, sum);
    if (M == 4) p = wide<T, 4, 2, ACROSS, PAIRS>(A, lda, W, apart, K, N, p, last, C, ldc, sum);
    if (M == 5) p = wide<T, 5, 2, ACROSS, PAIRS>(A, lda, W, apart, K, N, p, last, C, ldc, sum);
  }
  const Even blocks = {M, (M + ROWS - 1) / ROWS};
  for (; p < last; ++p) {
    for (int64_t b = 0; b < blocks.parts; ++b) {
      const int64_t m = blocks.at(b);
      block_of<T, ACROSS, PAIRS>(blocks.at(b + 1) - m, std::make_integer_sequence<int, ROWS>())(
          A + m * lda, next ? next_lda : ACROSS ? 0 : lda, W + p * apart, apart, K, C + m * ldc + p * PANEL<T>, ldc,
          N - p * PANEL<T>, sum, next ? next + m : A);
    }
    next = nullptr;
  }
}

// Rows a multiple of 2 kB apart fall into one or two sets of L1, which then cannot hold a line of each: work on a copy
// whose rows are a line further apart.
template <class T>
__attribute__((noinline)) void chunk_copied(const T* A, int64_t lda, int64_t M, const T* W, int64_t apart, int64_t K,
                                            int64_t N, int64_t p, int64_t last, T* C, int64_t ldc, bool sum) {
  constexpr int64_t stride = (CHUNK_BYTES + 64) / sizeof(T);
  T copy[CHUNK_ROWS * stride];
  for (int64_t m = 0; m < M; ++m) __builtin_memcpy(copy + m * stride, A + m * lda, K * sizeof(T));
  chunk(copy, stride, M, W, apart, K, N, p, last, C, ldc, sum);
}

// A single column, which would leave most of a panel empty: four chains a row, along K.
template <class T>
void dots(const T* A, int64_t lda, int64_t M, const T* W, int64_t K, T* C, int64_t ldc, bool add) {
  constexpr int64_t most = CHUNK_BYTES / sizeof(T), L = LANES<T>;
  T column[most];
  for (int64_t k0 = 0; k0 < K || k0 == 0; k0 += most) {
    const int64_t length = K - k0 < most ? K - k0 : most;
    for (int64_t k = 0; k < length; ++k) column[k] = W[(k0 + k) * PANEL<T>];
    for (int64_t m = 0; m < M; ++m) {
      const T* row = A + m * lda + k0;
      Vec<T> sums[4] = {};
      int64_t k = 0;
      for (; k + 4 * L <= length; k += 4 * L)
        ES_UNROLL for (int s = 0; s < 4; ++s) fma(sums[s], load(row + k + s * L), load(column + k + s * L));
      const Vec<T> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      T sum = add || k0 ? C[m * ldc] : T(0);
      for (int64_t l = 0; l < L; ++l) sum += all[l];
      for (; k < length; ++k) sum += row[k] * column[k];
      C[m * ldc] = sum;
    }
  }
}

template <class T>
void gemm(const T* A, int64_t lda, int64_t M, const T* W, int64_t K, int64_t N, int64_t first, int64_t last, T* C,
          int64_t ldc, bool add) {
  const int64_t panels = (N + PANEL<T> - 1) / PANEL<T>;
  if (last > panels) last = panels;
  if (M <= 0 || first >= last) return;
  if (N == 1) return dots(A, lda, M, W, K, C, ldc, add);
  constexpr int64_t most = CHUNK_BYTES / sizeof(T);
  const int64_t chunks = (M + CHUNK_ROWS - 1) / CHUNK_ROWS, rows = (M + chunks - 1) / chunks;
  for (int64_t m = 0; m < M; m += rows) {
    const int64_t n = m + rows < M ? rows : M - m;
    const bool collide = n > 4 && lda * int64_t(sizeof(T)) % 2048 == 0 && last - first >= 4;
    int64_t k = 0;
    do {  // once even where K is 0. Later passes go on from the sums so far, which C holds exactly
      const int64_t length = k + most < K ? most : K - k;
      const T *a = A + m * lda + k, *w = W + k * PANEL<T>;
      if (collide)
        chunk_copied(a, lda, n, w, K * PANEL<T>, length, N, first, last, C + m * ldc, ldc, add || k > 0);
      else
        chunk(a, lda, n, w, K * PANEL<T>, length, N, first, last, C + m * ldc, ldc, add || k > 0);
      k += length;
    } while (k < K);
  }
}

// ----------------------------------------------------------------------------------------------------- bfloat16 products

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

// ---------------------------------------------------------------------------------------------------------------- pack

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

// ------------------------------------------------------------------------------------------------- products over steps

template <class T, int M> void pack_block(const T* A, int64_t lda, int64_t steps, T* out) {
  for (int64_t s = 0; s < steps; ++s) __builtin_memcpy(out + s * M, A + s * lda, M * sizeof(T));
}

template <class T> using PackBlock = void (*)(const T*, int64_t, int64_t, T*);

template <class T, int... M> PackBlock<T> pack_block_of(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr PackBlock<T> table[] = {pack_block<T, M + 1>...};
  return table[rows - 1];
}

// M neighbouring columns of A, in the blocks of `chunk`.
template <class T> void pack_across(const T* A, int64_t lda, int64_t M, int64_t steps, T* out) {
  const Even blocks = {M, (M + ROWS - 1) / ROWS};
  for (int64_t s = 0; s < steps; s += 16) {  // along the rows of A
    const int64_t length = steps - s < 16 ? steps - s : 16;
    for (int64_t b = 0; b < blocks.parts; ++b) {
      const int64_t m = blocks.at(b), n = blocks.at(b + 1) - m;
      pack_block_of<T>(n, std::make_integer_sequence<int, ROWS>())(A + s * lda + m, lda, length,
                                                                   out + m * steps + s * n);
    }
  }
}

template <class T> constexpr int64_t ACROSS_PANELS = ACROSS_BYTES / (STEPS * PANEL<T> * sizeof(T));

// Rows of steps, as in `Rows` of work_layout.py: row r has `length[r]` from place `offset[r]` on; `resets` may be null. In the
// caller's arrays every row has `time` of them.
struct Ragged {
  const int64_t *offset, *length;
  const uint8_t* resets;
  int64_t rows, time;

  // The last row that begins at or before this step: the one that has it.
  int64_t row_of(int64_t step) const {
    int64_t low = 0, high = rows;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (offset[middle] <= step ? low : high) = middle;
    }
    return low;
  }
};

// What of a matrix belongs to a step: the row of the same number (ALL); the one of its place in the caller's arrays
// (USED); or that of the step before, in either order (BEFORE, USED_BEFORE).
enum Way : int64_t { ALL, USED, BEFORE, USED_BEFORE };

// One row for every step. There is no step before the first of row r, nor before one at which it is reset: rows r and
// `rows` + r of `others` stand for these.
template <class T> struct Lines {
  const T* rows;
  int64_t ld;
  Way way;
  const T* others;
  int64_t ld_others;
  const Ragged* ragged;

  Lines from(int64_t column) const { return {rows + column, ld, way, others + column, ld_others, ragged}; }

  // `count` columns of steps s to s + length, and how far apart they lie; put together in `workspace` where they must be.
  std::pair<const T*, int64_t> at(int64_t s, int64_t length, int64_t column, int64_t count, T* workspace) const {
    if (way == ALL) return {rows + s * ld + column, ld};
    T* to = workspace;
    for (int64_t r = ragged->row_of(s), end = s + length; s < end; ++r) {
      const int64_t first = ragged->offset[r], last = first + ragged->length[r];
      const int64_t moved = (way == BEFORE ? 0 : r * ragged->time - first) - (way != USED);
      for (; s < last && s < end; ++s, to += count) {
        const bool again = way != USED && ragged->resets && ragged->resets[s];
        const T* row = again ? others + (ragged->rows + r) * ld_others
                       : way != USED && s == first ? others + r * ld_others
                                                   : rows + (s + moved) * ld;
        __builtin_memcpy(to, row + column, count * sizeof(T));
      }
    }
    return {workspace, count};
  }
};

// Numbers of a part of B (N columns) and of a group of rows of C that are worked on at once, and of all that needs.
template <class T> struct Workspace {
  int64_t part, group;
  Workspace(int64_t steps, int64_t N) {
    const int64_t depth = steps < STEPS ? steps : STEPS, panels = (N + PANEL<T> - 1) / PANEL<T>;
    part = (panels < ACROSS_PANELS<T> ? panels : ACROSS_PANELS<T>) * PANEL<T> * depth;
    group = ACROSS_ROWS * depth;
  }
  int64_t all() const { return part + group + (part > group ? part : group); }
};

// Two steps after one another as one row of pairs, zeros beside the last of an odd number. It may overwrite `from`.
inline void steps_to_bf16(const float* from, int64_t ld, int64_t steps, int64_t count, float* to) {
  for (int64_t s = 0; s < steps / 2; ++s)
    for (int64_t j = 0; j < count; ++j)
      put_pair(to + s * count + j, from[2 * s * ld + j], from[(2 * s + 1) * ld + j]);
  if (steps % 2)
    for (int64_t j = 0; j < count; ++j) put_pair(to + steps / 2 * count + j, from[(steps - 1) * ld + j], 0);
}

// C[a, b] = sum of A[s, a] B[s, b] over all steps s.
template <class T, bool PAIRS>
void across(const Lines<T>& A, int64_t M, const Lines<T>& B, int64_t N, int64_t steps, T* C, int64_t ldc, T* memory) {
  constexpr int64_t NR = PANEL<T>;
  if (M <= 0 || N <= 0) return;
  if (steps <= 0)
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < N; ++n) C[m * ldc + n] = T(0);
  const int64_t panels = (N + NR - 1) / NR;
  const Even chunks = {steps, (steps + STEPS - 1) / STEPS};
  const Even parts = {panels, (panels + ACROSS_PANELS<T> - 1) / ACROSS_PANELS<T>};
  const Even groups = {M, (M + ACROSS_ROWS - 1) / ACROSS_ROWS};
  const Workspace<T> size(steps, N);
  T *packed = memory, *group = memory + size.part, *workspace = group + size.group;
  const auto lines = [workspace](const Lines<T>& from, int64_t s, int64_t length, int64_t column, int64_t count) {
    const auto found = from.at(s, length, column, count, workspace);
    if constexpr (PAIRS) {
      steps_to_bf16(found.first, found.second, length, count, workspace);
      return std::pair<const T*, int64_t>{workspace, count};
    } else {
      return found;
    }
  };
  for (int64_t i = 0; i < chunks.parts; ++i) {
    const int64_t s = chunks.at(i), length = chunks.at(i + 1) - s, depth = PAIRS ? (length + 1) / 2 : length;
    for (int64_t j = 0; j < parts.parts; ++j) {
      const int64_t p = parts.at(j), count = parts.at(j + 1) - p, rest = N - p * NR;
      const int64_t columns = rest < count * NR ? rest : count * NR;
      const auto [b, ldb] = lines(B, s, length, p * NR, columns);
      pack(b, depth, columns, ldb, 1, packed);
      for (int64_t g = 0; g < groups.parts; ++g) {
        const int64_t m = groups.at(g), n = groups.at(g + 1) - m;
        const auto [a, lda] = lines(A, s, length, m, n);
        pack_across(a, lda, n, depth, group);
        const bool more = g + 1 < groups.parts, end = i + 1 == chunks.parts && j + 1 == parts.parts;
        const int64_t after = more || j + 1 < parts.parts ? s : s + length;
        const T* next = A.way != ALL || (end && !more) ? nullptr : A.rows + after * A.ld + (more ? m + n : 0);
        chunk<T, true, PAIRS>(group, depth, n, packed, depth * NR, depth, rest, 0, count, C + m * ldc + p * NR, ldc,
                              i > 0, next, PAIRS ? 2 * A.ld : A.ld);
      }
    }
  }
}

// U steps of `few`.
template <class T, int R, int U>
void few_steps(const T* X, int64_t ldx, const T* G, int64_t ldg, int64_t M, T* sums) {
  Vec<T> x[U][R];
  ES_UNROLL for (int u = 0; u < U; ++u) ES_UNROLL for (int r = 0; r < R; ++r) x[u][r] = splat(X[u * ldx + r]);
  int64_t m = 0;
  for (; m + LANES<T> <= M; m += LANES<T>) {
    Vec<T> sum[R];
    ES_UNROLL for (int r = 0; r < R; ++r) sum[r] = load(sums + r * M + m);
    ES_UNROLL for (int u = 0; u < U; ++u) {
      const Vec<T> g = load(G + u * ldg + m);
      ES_UNROLL for (int r = 0; r < R; ++r) fma(sum[r], g, x[u][r]);
    }
    ES_UNROLL for (int r = 0; r < R; ++r) store<T>(sums + r * M + m, sum[r]);
  }
  for (; m < M; ++m)
    for (int r = 0; r < R; ++r) {
      Vec<T> sum = splat(sums[r * M + m]);
      ES_UNROLL for (int u = 0; u < U; ++u) fma(sum, splat(G[u * ldg + m]), x[u][r]);
      sums[r * M + m] = sum[0];
    }
}

// R columns of X: G is read once, in order, since that takes longer than the little there is to compute.
template <class T, int R>
void few(const Lines<T>& lines, const Lines<T>& G, int64_t M, int64_t steps, T* C, int64_t ldc, T* sums, T* workspace) {
  const Even chunks = {steps, (steps + STEPS - 1) / STEPS};
  for (int64_t i = 0; i < chunks.parts; ++i) {
    const int64_t first = chunks.at(i), length = chunks.at(i + 1) - first;
    const auto [X, ldx] = lines.at(first, length, 0, R, workspace);
    const T* g = G.rows + first * G.ld;
    for (int64_t j = 0; j < R * M; ++j) sums[j] = T(0);
    int64_t s = 0;
    for (; s + 4 <= length; s += 4) few_steps<T, R, 4>(X + s * ldx, ldx, g + s * G.ld, G.ld, M, sums);
    for (; s < length; ++s) few_steps<T, R, 1>(X + s * ldx, ldx, g + s * G.ld, G.ld, M, sums);
    for (int64_t m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) C[m * ldc + r] = i > 0 ? C[m * ldc + r] + sums[r * M + m] : sums[r * M + m];
  }
}

// Few columns of X would leave most of a panel empty; as rows of the transposed product they do not.
template <class T> bool swapped(int64_t M, int64_t N) {
  constexpr int64_t NR = PANEL<T>;
  return N < NR && N * ((M + NR - 1) / NR) < M;
}

// For a share of M, or of N where that is larger.
template <class T> int64_t gemm_tn_memory(int64_t steps, int64_t M, int64_t N) {
  const int64_t line = 64 / sizeof(T);
  if (N >= PANEL<T> && N <= M) return Workspace<T>(steps, N).all() + line;  // never swapped
  const int64_t all = Workspace<T>(steps, M > N ? M : N).all(), few = 2 * (M + STEPS);
  return (all > few ? all : few) + M * (N < PANEL<T> ? N : PANEL<T>) + line;
}

template <class T, bool PAIRS = false>
void gemm_tn(Lines<T> G, Lines<T> X, int64_t steps, int64_t N, int64_t m0, int64_t m1, T* C, int64_t ldc, T* memory) {
  const int64_t M = m1 - m0;
  if (M <= 0 || N <= 0) return;
  memory = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
  G = G.from(m0);
  C += m0 * ldc;
  if (!swapped<T>(M, N)) return across<T, PAIRS>(G, M, X, N, steps, C, ldc, memory);
  if (N <= 2 && steps > 0) return (N == 1 ? few<T, 1> : few<T, 2>)(X, G, M, steps, C, ldc, memory, memory + N * M);
  T* after = memory + Workspace<T>(steps, M).all();
  across<T, PAIRS>(X, N, G, M, steps, after, M, memory);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) C[m * ldc + n] = after[n * M + m];
}

// ------------------------------------------------------------------------------------------------------------- threads

// Part i of n of so many pieces of a size; the last piece may be shorter.
struct Partition {
  int64_t first, last;
  Partition(int64_t all, int64_t piece, int64_t i, int64_t n) {
    const Even parts = {(all + piece - 1) / piece, n};
    first = parts.at(i) * piece;
    last = parts.at(i + 1) * piece < all ? parts.at(i + 1) * piece : all;
  }
};

template <class T> T* at(int64_t address) { return reinterpret_cast<T*>(address); }

template <class T, bool PAIRS = false> void panels_body(const int64_t* t, int64_t i, int64_t n) {
  const int64_t K = t[1], N = t[2], stride_k = t[3], stride_n = t[4];
  const Partition part(N, PANEL<T>, i, n);
  if (part.first >= part.last) return;
  const T* W = at<T>(t[0]) + part.first * stride_n;
  if constexpr (PAIRS)
    pack_pairs(W, K, part.last - part.first, stride_k, stride_n, at<T>(t[5]) + part.first * ((K + 1) / 2));
  else
    pack(W, K, part.last - part.first, stride_k, stride_n, at<T>(t[5]) + part.first * K);
}

template <class T> void rows_body(const int64_t* t, int64_t i, int64_t n) {
  const int64_t lda = t[1], M = t[2], K = t[4], N = t[5], ldc = t[7], panels = (N + PANEL<T> - 1) / PANEL<T>;
  if (M < 4 * ROWS * n && panels >= n) {
    const Partition part(panels, 1, i, n);
    return gemm(at<T>(t[0]), lda, M, at<T>(t[3]), K, N, part.first, part.last, at<T>(t[6]), ldc, false);
  }
  const Partition part(M, ROWS, i, n);
  gemm(at<T>(t[0]) + part.first * lda, lda, part.last - part.first, at<T>(t[3]), K, N, 0, panels,
       at<T>(t[6]) + part.first * ldc, ldc, false);
}

// One product over steps: G, ldg, X, ldx, steps, M, N, C, ldc, way, others, ld_others; X as in Lines.
template <class T, bool PAIRS>
void columns_share(const int64_t* t, const Ragged& ragged, T* memory, int64_t i, int64_t n) {
  const int64_t steps = t[4], M = t[5], N = t[6], ldc = t[8];
  const Lines<T> G = {at<T>(t[0]), t[1], ALL, nullptr, 0, nullptr};
  const Lines<T> X = {at<T>(t[2]), t[3], Way(t[9]), at<T>(t[10]), t[11], &ragged};
  if (M < 2 * ROWS * n && N > M) {
    const Partition part(N, PANEL<T>, i, n);
    return gemm_tn<T, PAIRS>(G, X.from(part.first), steps, part.last - part.first, 0, M, at<T>(t[7]) + part.first,
                             ldc, memory);
  }
  const Partition part(M, swapped<T>(M, N) ? PANEL<T> : 1, i, n);
  gemm_tn<T, PAIRS>(G, X, steps, N, part.first, part.last, at<T>(t[7]), ldc, memory);
}

// Numbers that threads have summed each for itself: from, how many threads, distance of theirs, how many numbers, to.
template <class T> void total(const int64_t* t) {
  const T* from = at<T>(t[0]);
  T* to = at<T>(t[4]);
  for (int64_t j = 0; j < t[3]; ++j) {
    T sum = from[j];
    for (int64_t i = 1; i < t[1]; ++i) sum += from[i * t[2] + j];
    to[j] = sum;
  }
}

// Zeros as padding: array, bytes of a step.
void pad_body(const int64_t* t, const Ragged& ragged, int64_t i, int64_t n) {
  const int64_t *length = ragged.length, time = ragged.time, bytes = t[1];
  for (int64_t r = i; r < ragged.rows; r += n)
    __builtin_memset(at<char>(t[0]) + (r * time + length[r]) * bytes, 0, (time - length[r]) * bytes);
}

template <class T, bool PAIRS = false> void columns_body(const int64_t* t, int64_t i, int64_t n) {
  const int64_t products = t[0], totals = t[1], padded = t[2];
  T* memory = at<T>(t[3]) + i * t[4];
  const Ragged ragged = {at<int64_t>(t[5]), at<int64_t>(t[6]), at<uint8_t>(t[7]), t[8], t[9]};
  t += 10;
  for (int64_t k = 0; k < products; ++k, t += 12) columns_share<T, PAIRS>(t, ragged, memory, i, n);
  for (int64_t k = 0; k < totals; ++k, t += 5)
    if (i == 0) total<T>(t);
  for (int64_t k = 0; k < padded; ++k, t += 2) pad_body(t, ragged, i, n);
}

// Rows of steps one after the other without padding, to rows of equal length with zeros behind their steps, or back:
// packed, padded, offset and length of each row, rows, time, bytes of a step, whether back.
void ragged_body(const int64_t* t, int64_t i, int64_t n) {
  const int64_t *offset = at<int64_t>(t[2]), *length = at<int64_t>(t[3]), time = t[5], bytes = t[6];
  for (int64_t r = i; r < t[4]; r += n) {
    char *packed = at<char>(t[0]) + offset[r] * bytes, *padded = at<char>(t[1]) + r * time * bytes;
    const int64_t used = length[r] * bytes;
    if (t[7]) {
      __builtin_memcpy(packed, padded, used);
    } else {
      __builtin_memcpy(padded, packed, used);
      __builtin_memset(padded + used, 0, time * bytes - used);
    }
  }
}

// What a step of one more row costs, where a thread has some already, in quarters of the cost of one among many: the first
// has to read what rows are multiplied by, and the kernels do two to four rows at less than their part.
int64_t row_cost(int64_t rows, bool dense) { return !dense || rows >= 4 ? 4 : rows ? 3 : 7; }

// Whether all rows find a place if each thread takes, the longest first, those whose steps it can do at this cost.
bool fits(const int64_t* order, const int64_t* length, int64_t rows, int64_t threads, bool dense, int64_t cost,
          int64_t* starts, int64_t* assigned, int64_t* taken) {
  for (int64_t r = 0; r < rows; ++r) taken[r] = 0;
  int64_t placed = 0;
  for (int64_t thread = 0; thread < threads; ++thread) {
    starts[thread] = placed;
    for (int64_t r = 0, left = cost; r < rows && placed < rows; ++r) {
      const int64_t one = row_cost(placed - starts[thread], dense) * length[order[r]];
      if (taken[r] || one > left) continue;
      taken[r] = 1;
      left -= one;
      assigned[placed++] = order[r];
    }
  }
  starts[threads] = placed;
  return placed == rows;
}

// Which rows each thread does, so that all have about as much to do: the least cost for which they fit (MULTIFIT; Coffman,
// Garey and Johnson 1978, "An application of bin-packing to multiprocessor scheduling"). Order, longest first, length,
// rows, threads, whether they multiply, and where these go: the first row of each thread, their end, all rows; as
// much memory again as rows.
void assign(const int64_t* t) {
  const int64_t *order = at<int64_t>(t[0]), *length = at<int64_t>(t[1]), rows = t[2], threads = t[3];
  const bool dense = t[4];
  int64_t *starts = at<int64_t>(t[5]), *to = starts + threads + 1, *taken = to + rows;
  if (!rows || threads == 1 || length[order[0]] == length[order[rows - 1]]) {
    for (int64_t thread = 0; thread <= threads; ++thread) starts[thread] = rows * thread / threads;
    for (int64_t r = 0; r < rows; ++r) to[r] = order[r];
    return;
  }
  int64_t low = 0, high = 0;  // for which they do not fit, or who knows; and for which they do
  for (int64_t r = 0; r < rows; ++r) high += row_cost(r, dense) * length[order[r]];
  while (low < high) {
    const int64_t cost = low + (high - low) / 2;
    if (fits(order, length, rows, threads, dense, cost, starts, to, taken))
      high = cost;
    else
      low = cost + 1;
  }
  fits(order, length, rows, threads, dense, high, starts, to, taken);
}

// PyTorch's own OpenMP pool: a second one would compete with it for the cores.
void (*start_team)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
int (*team_index)() = nullptr;
int (*team_size)() = nullptr;

struct Work {
  void (*body)(void*, int64_t, int64_t);
  void* data;
};

void work(void* given) {
  const Work* w = static_cast<Work*>(given);
  w->body(w->data, team_index(), team_size());
}

// The runtime may give fewer threads than wanted, so the size of the team is asked inside it.
void parallel(void (*body)(void*, int64_t, int64_t), void* data, int64_t wanted) {
  if (!start_team || wanted <= 1) return body(data, 0, 1);
  Work w{body, data};
  start_team(work, &w, unsigned(wanted), 0);
}

struct Barrier {
  int64_t arrived;
  char apart[120];  // each word on a line of its own, however the memory is aligned: arriving disturbs no one's wait
  int64_t round;
  char rest[120];
};

ES_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The last to arrive opens the next round. No one can miss it: a round ends only after all have read its number.
void wait(Barrier* b, int64_t n) {
  if (n <= 1) return;
  const int64_t round = __atomic_load_n(&b->round, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == n) {
    __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&b->round, round + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&b->round, __ATOMIC_ACQUIRE) == round;) {
    if (spins < 2000) {
      ++spins;
      relax();
    } else {
      sched_yield();  // more threads than cores: let the others come
    }
  }
}

typedef void (*Body)(void* data, int64_t i, int64_t n);

// Matrices to pack, each as for `panels_body`; and then one after the other what so many of the threads are to run.
struct Run {
  Body body;
  void* data;
  int64_t threads, jobs, count;
  Body then;
  void* then_data;
  int64_t then_threads;
  Barrier done;
};

template <class T, bool PAIRS> void run_body(void* given, int64_t i, int64_t n) {
  Run* r = static_cast<Run*>(given);
  const int64_t some = r->threads < n ? r->threads : n, others = r->then_threads < n ? r->then_threads : n;
  for (int64_t job = 0; job < r->count; ++job)
    panels_body<T, PAIRS>(reinterpret_cast<int64_t*>(static_cast<char*>(r->data) + r->jobs) + 6 * job, i, n);
  if (r->count) wait(&r->done, n);
  if (r->body && i < some) r->body(r->data, i, some);
  if (!r->then) return;
  wait(&r->done, n);
  if (i < others) r->then(r->then_data, i, others);
}

// The table of a call, by its slots: each entry is one of the numbers that the call brings (-1: none of them), and what is
// added to it, once and for every step, of which the first number says how many there are.
void fill(const int64_t* slots, int64_t entries, const int64_t* numbers, int64_t* table) {
  for (int64_t k = 0; k < entries; ++k, slots += 3)
    table[k] = (slots[0] < 0 ? 0 : numbers[slots[0]]) + slots[1] + slots[2] * numbers[0];
}

// The slots: a body; how many entries its table has, which entry is the first of the matrices to pack, and how many of
// these there are; what runs then, and how many entries its table has; the entries of both. The call brings: how many
// steps; on how many threads each of the two runs; and more.
template <class T, bool PAIRS> void call(const int64_t* slots, const int64_t* numbers) {
  const int64_t entries = slots[1], others = slots[5];
  int64_t* table = static_cast<int64_t*>(__builtin_alloca((entries + others + 1) * sizeof(int64_t)));
  fill(slots + 6, entries + others, numbers, table);
  Run run = {at<void(void*, int64_t, int64_t)>(slots[0]), table, numbers[1], slots[2] * int64_t(sizeof(int64_t)), slots[3],
             at<void(void*, int64_t, int64_t)>(slots[4]), table + entries, numbers[2], {}};
  parallel(run_body<T, PAIRS>, &run, numbers[1] > numbers[2] ? numbers[1] : numbers[2]);
}

}  // namespace

extern "C" {

#define ES_INTERFACE(T, S)                                                                                            \
  int64_t es_panel_##S(void) { return PANEL<T>; }                                                                     \
  int64_t es_packed_size_##S(int64_t K, int64_t N) { return (N + PANEL<T> - 1) / PANEL<T> * PANEL<T> * K; }           \
  void es_pack_##S(const T* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, T* out) {                    \
    pack<T>(W, K, N, stride_k, stride_n, out);                                                                        \
  }                                                                                                                   \
  void es_gemm_##S(const T* A, int64_t lda, int64_t M, const T* packed, int64_t K, int64_t N, int64_t first,          \
                   int64_t last, T* C, int64_t ldc, int add) {                                                        \
    gemm<T>(A, lda, M, packed, K, N, first, last, C, ldc, add != 0);                                                  \
  }                                                                                                                   \
  int64_t es_gemm_tn_memory_##S(int64_t steps, int64_t M, int64_t N) { return gemm_tn_memory<T>(steps, M, N); }       \
  void es_gemm_tn_##S(const T* G, int64_t ldg, const T* X, int64_t ldx, int64_t steps, int64_t, int64_t N,            \
                      int64_t m0, int64_t m1, T* C, int64_t ldc, T* memory) {                                         \
    const Lines<T> g = {G, ldg, ALL, nullptr, 0, nullptr}, x = {X, ldx, ALL, nullptr, 0, nullptr};                    \
    gemm_tn<T>(g, x, steps, N, m0, m1, C, ldc, memory);                                                               \
  }                                                                                                                   \
  /* Bodies for es_parallel; `data` is a table of int64.                                                              \
     W, K, N, stride_k, stride_n, out: es_pack, panels divided. */                                                    \
  void es_panels_##S(void* data, int64_t i, int64_t n) { panels_body<T>(static_cast<int64_t*>(data), i, n); }         \
  /* Those of `count` matrices, described `jobs` bytes behind the start of `data`, then `body` if it is not null. */    \
  void es_run_##S(Body body, void* data, int64_t threads, int64_t jobs, int64_t count) {                              \
    Run run = {body, data, threads, jobs, count, nullptr, nullptr, 1, {}};                                            \
    parallel(run_body<T, false>, &run, threads);                                                                      \
  }                                                                                                                   \
  void es_call_##S(const int64_t* slots, const int64_t* numbers) { call<T, false>(slots, numbers); }                    \
  /* A, lda, M, packed, K, N, C, ldc: es_gemm, rows divided, or panels where rows are few. */                         \
  void es_rows_##S(void* data, int64_t i, int64_t n) { rows_body<T>(static_cast<int64_t*>(data), i, n); }             \
  /* How many products, totals and arrays with padding, memory, numbers of it for each thread (es_gemm_tn_memory of   \
     the largest), what `Ragged` has, and of each what `columns_share` says, `total` and `pad_body`. */               \
  void es_columns_##S(void* data, int64_t i, int64_t n) { columns_body<T>(static_cast<int64_t*>(data), i, n); }
#ifdef ES_F32
ES_INTERFACE(float, f32)
#endif
#ifdef ES_F64
ES_INTERFACE(double, f64)
#endif

// Products of numbers in bfloat16, added up in float, where the processor has them.
int64_t es_has_bf16(void) { return HAS_BF16; }
#ifdef ES_BF16
int64_t es_panel_bf16(void) { return PANEL<float>; }
int64_t es_packed_size_bf16(int64_t K, int64_t N) {
  return (N + PANEL<float> - 1) / PANEL<float> * PANEL<float> * ((K + 1) / 2);
}
void es_pack_bf16(const float* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, float* out) {
  pack_pairs(W, K, N, stride_k, stride_n, out);
}
void es_gemm_bf16(const float* A, int64_t lda, int64_t M, const float* packed, int64_t K, int64_t N, int64_t first,
                   int64_t last, float* C, int64_t ldc, int add) {
  gemm_bf16(A, lda, M, packed, K, N, first, last, C, ldc, add != 0);
}
void es_run_bf16(Body body, void* data, int64_t threads, int64_t jobs, int64_t count) {
  Run run = {body, data, threads, jobs, count, nullptr, nullptr, 1, {}};
  parallel(run_body<float, true>, &run, threads);
}
void es_call_bf16(const int64_t* slots, const int64_t* numbers) { call<float, true>(slots, numbers); }
void es_columns_bf16(void* data, int64_t i, int64_t n) {
  columns_body<float, true>(static_cast<int64_t*>(data), i, n);
}
#endif

void es_set_openmp(void* GOMP_parallel, void* omp_get_thread_num, void* omp_get_num_threads) {
  const bool all = GOMP_parallel && omp_get_thread_num && omp_get_num_threads;
  start_team = all ? reinterpret_cast<decltype(start_team)>(GOMP_parallel) : nullptr;
  team_index = reinterpret_cast<decltype(team_index)>(omp_get_thread_num);
  team_size = reinterpret_cast<decltype(team_size)>(omp_get_num_threads);
}

void es_parallel(void (*body)(void* data, int64_t i, int64_t n), void* data, int64_t wanted) {
  parallel(body, data, wanted);
}

void es_assign(void* data) { assign(static_cast<int64_t*>(data)); }

void es_ragged(void* data, int64_t i, int64_t n) { ragged_body(static_cast<int64_t*>(data), i, n); }

int64_t es_barrier_bytes(void) { return sizeof(Barrier); }

void es_barrier(void* barrier, int64_t n) { wait(static_cast<Barrier*>(barrier), n); }

}  // extern "C"
