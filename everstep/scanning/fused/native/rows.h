// Which rows each thread computes, where threads own rows. `length` gives a row's steps, and `order` sorts the rows by
// them, longest first. A step of few rows costs as much as one of `few`: what it multiplies by has to be read.

#include <stdint.h>

// The first row that threads 0 … i leave over, if each takes the next rows as long as their steps cost at most `cost`.
static int64_t es_rows_until(const int64_t* order, const int64_t* length, int64_t rows, int64_t few, int64_t i,
                             int64_t cost) {
  int64_t row = 0;
  for (int64_t thread = 0; thread <= i && row < rows; ++thread) {
    int64_t left = cost - few * length[order[row]];
    for (int64_t taken = 0; row < rows && left >= 0; ++taken, ++row) {
      if (taken >= few) left -= length[order[row]];
      if (left < 0) break;
    }
  }
  return row;
}

// The first row of thread i of n: rows go to threads in their order, so that all have as much to do, and short ones do
// not go on as long as the longest.
static int64_t es_rows_of(const int64_t* order, const int64_t* length, int64_t rows, int64_t few, int64_t i,
                          int64_t n) {
  if (!rows || !i || length[order[0]] == length[order[rows - 1]]) return rows * i / n;
  int64_t low = 0, high = few * length[order[0]];
  for (int64_t row = 0; row < rows; ++row) high += length[order[row]];
  while (low < high) {
    const int64_t cost = low + (high - low) / 2;
    if (es_rows_until(order, length, rows, few, n - 1, cost) == rows)
      high = cost;
    else
      low = cost + 1;
  }
  return es_rows_until(order, length, rows, few, i - 1, low);
}
