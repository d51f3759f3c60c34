// Products summed over all steps: the gradients of weights.

#pragma once

#include <utility>

#include "bfloat16.h"
#include "gemm.h"
#include "pack.h"
#include "tables.h"

namespace {

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

}  // namespace
