// The largest numbers of each row, in falling order. NaN counts as the largest; of equal numbers the first one counts.
//
// Plain C interface; compiled behind math.h and `LargestCall` of decode/largest.py.

namespace {

constexpr int64_t PIECE = 64;  // numbers that are compared at once; few pieces have one that enters

template <class T> inline bool above(T x, T y) { return !(x <= y) && y == y; }

template <class T> void largest_row(const LargestCall<T>& call, int64_t row) {
  const int64_t N = call.columns, count = call.wanted;
  const T* x = call.numbers + row * N;
  T* best = call.best + row * count;
  int64_t* place = call.places + row * count;
  for (int64_t k = 0; k < count; ++k) best[k] = -T(__builtin_inff()), place[k] = 0;
  for (int64_t from = 0; from < N; from += PIECE) {
    const int64_t to = from + PIECE < N ? from + PIECE : N;
    const T least = best[count - 1];
    int enters = 0;
#pragma omp simd reduction(| : enters)
    for (int64_t j = from; j < to; ++j) enters |= !(x[j] <= least);
    if (!enters) continue;
    for (int64_t j = from; j < to; ++j) {
      if (!above(x[j], best[count - 1])) continue;
      int64_t k = count - 1;
      for (; k > 0 && above(x[j], best[k - 1]); --k) best[k] = best[k - 1], place[k] = place[k - 1];
      best[k] = x[j], place[k] = j;
    }
  }
}

template <class T> void share(const void* table, int64_t i, int64_t n) {
  const auto call = table_at<LargestCall<T>>(table);
  for (int64_t row = call.rows * i / n; row < call.rows * (i + 1) / n; ++row) largest_row(call, row);
}

}  // namespace

extern "C" void es_largest_f32(void* table, int64_t i, int64_t n) { share<float>(table, i, n); }
extern "C" void es_largest_f64(void* table, int64_t i, int64_t n) { share<double>(table, i, n); }
