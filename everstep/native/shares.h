// What each thread of a team does of a product.

#pragma once

#include "over_steps.h"
#include "tables.h"

namespace {

// Part i of n of so many pieces of a size; the last piece may be shorter.
struct Partition {
  int64_t first, last;
  Partition(int64_t all, int64_t piece, int64_t i, int64_t n) {
    const Even parts = {(all + piece - 1) / piece, n};
    first = parts.at(i) * piece;
    last = parts.at(i + 1) * piece < all ? parts.at(i + 1) * piece : all;
  }
};

template <class T, bool PAIRS = false> void packing_share(const Packing<T>& t, int64_t i, int64_t n) {
  const Partition part(t.columns, PANEL<T>, i, n);
  if (part.first >= part.last) return;
  const T* w = t.w + part.first * t.by_column;
  if constexpr (PAIRS)
    pack_pairs(w, t.depth, part.last - part.first, t.by_depth, t.by_column, t.packed + part.first * ((t.depth + 1) / 2));
  else
    pack(w, t.depth, part.last - part.first, t.by_depth, t.by_column, t.packed + part.first * t.depth);
}

// Rows divided, or panels where rows are few.
template <class T> void rows_share(const RowsProduct<T>& t, int64_t i, int64_t n) {
  const int64_t panels = (t.columns + PANEL<T> - 1) / PANEL<T>;
  if (t.rows < 4 * ROWS * n && panels >= n) {
    const Partition part(panels, 1, i, n);
    return gemm(t.a, t.by_a, t.rows, t.packed, t.depth, t.columns, part.first, part.last, t.out, t.by_out, false);
  }
  const Partition part(t.rows, ROWS, i, n);
  gemm(t.a + part.first * t.by_a, t.by_a, part.last - part.first, t.packed, t.depth, t.columns, 0, panels,
       t.out + part.first * t.by_out, t.by_out, false);
}

template <class T, bool PAIRS>
void over_steps_share(const OverSteps<T>& t, const Ragged& ragged, T* memory, int64_t i, int64_t n) {
  const Lines<T> G = {t.g, t.by_g, ALL, nullptr, 0, nullptr};
  const Lines<T> X = {t.x, t.by_x, Way(t.way), t.others, t.by_others, &ragged};
  if (t.rows < 2 * ROWS * n && t.columns > t.rows) {
    const Partition part(t.columns, PANEL<T>, i, n);
    return gemm_tn<T, PAIRS>(G, X.from(part.first), t.steps, part.last - part.first, 0, t.rows, t.out + part.first,
                             t.by_out, memory);
  }
  const Partition part(t.rows, swapped<T>(t.rows, t.columns) ? PANEL<T> : 1, i, n);
  gemm_tn<T, PAIRS>(G, X, t.steps, t.columns, part.first, part.last, t.out, t.by_out, memory);
}

template <class T> void total(const OverThreads<T>& t) {
  for (int64_t j = 0; j < t.size; ++j) {
    T sum = t.parts[j];
    for (int64_t i = 1; i < t.threads; ++i) sum += t.parts[i * t.by + j];
    t.out[j] = sum;
  }
}

void padding_share(const Padding& t, const Ragged& ragged, int64_t i, int64_t n) {
  const int64_t *length = ragged.length, time = ragged.time;
  for (int64_t r = i; r < ragged.rows; r += n)
    __builtin_memset(t.array + (r * time + length[r]) * t.each, 0, (time - length[r]) * t.each);
}

template <class T, bool PAIRS = false> void sums_share(const int64_t* entries, int64_t i, int64_t n) {
  const auto t = table_at<SumsHeader<T>>(entries);
  const Ragged ragged = {t.offset, t.length, t.resets, t.rows, t.time};
  const int64_t* next = entries + ENTRIES<SumsHeader<T>>;
  for (int64_t k = 0; k < t.products; ++k, next += ENTRIES<OverSteps<T>>)
    over_steps_share<T, PAIRS>(table_at<OverSteps<T>>(next), ragged, t.memory + i * t.workspace, i, n);
  for (int64_t k = 0; k < t.totals; ++k, next += ENTRIES<OverThreads<T>>)
    if (i == 0) total(table_at<OverThreads<T>>(next));
  for (int64_t k = 0; k < t.paddings; ++k, next += ENTRIES<Padding>) padding_share(table_at<Padding>(next), ragged, i, n);
}

}  // namespace
