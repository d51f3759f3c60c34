// Rows times a packed matrix.

#pragma once

#include <utility>

#include "vectors.h"

namespace {

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

// part(from, to) of panels `first` to `last`. With `from_end` the last panels come first, where rows are so few that reading
// them takes longest: those that a product in the other direction read last are still in L2.
template <class Part> void ordered(const Part& part, int64_t M, int64_t first, int64_t last, bool from_end) {
  if (!from_end || M > 4) return part(first, last);
  for (int64_t end = last; end > first; end -= 4) part(end - 4 > first ? end - 4 : first, end);  // four are read side by side
}

}  // namespace
