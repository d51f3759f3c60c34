// Rows of different lengths: with and without padding, and divided among threads.

#pragma once

#include "tables.h"

namespace {

void ragged_share(const RaggedCopy& t, int64_t i, int64_t n) {
  for (int64_t r = i; r < t.rows; r += n) {
    char *packed = t.packed + t.offset[r] * t.each, *padded = t.padded + r * t.time * t.each;
    const int64_t used = t.length[r] * t.each;
    if (t.back) {
      __builtin_memcpy(packed, padded, used);
    } else {
      __builtin_memcpy(padded, packed, used);
      __builtin_memset(padded + used, 0, t.time * t.each - used);
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
// Garey and Johnson 1978, "An application of bin-packing to multiprocessor scheduling").
void assign(const Assignment& t) {
  const int64_t *order = t.order, *length = t.length, rows = t.rows, threads = t.threads;
  const bool dense = t.dense;
  int64_t *starts = t.starts, *to = starts + threads + 1, *taken = to + rows;
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

}  // namespace
