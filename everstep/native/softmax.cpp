// The softmax of rows of logits in one pass over memory: a row is read and written while it is in the nearest cache.
//
// Plain C interface; compiled behind math.h and `SoftmaxCall` of heads/compiled_softmax.py.

namespace {

template <class T> struct Sums {
  T most, all;  // the largest number of a row, and the sum of its numbers
};

// x += b, several chains at a time, which wait for nothing of each other.
template <class T> Sums<T> biased(T* x, const T* bias, int64_t K) {
  constexpr int CHAINS = 64;
  T most[CHAINS], all[CHAINS];
  for (int c = 0; c < CHAINS; ++c) most[c] = -T(__builtin_inff()), all[c] = 0;
  int64_t j = 0;
  for (; j + CHAINS <= K; j += CHAINS) {
#pragma omp simd
    for (int c = 0; c < CHAINS; ++c) {
      const T sum = x[j + c] + bias[j + c];
      x[j + c] = sum;
      all[c] += sum;
      most[c] = sum > most[c] ? sum : most[c];
    }
  }
  for (int c = 0; j < K; ++j, ++c) {
    const T sum = x[j] + bias[j];
    x[j] = sum;
    all[c] += sum;
    most[c] = sum > most[c] ? sum : most[c];
  }
  Sums<T> found = {most[0], all[0]};
  for (int c = 1; c < CHAINS; ++c) {
    found.most = most[c] > found.most ? most[c] : found.most;
    found.all += all[c];
  }
  return found;
}

// x = e^(x - most), and the sum.
template <class T> T powers(T* x, T most, int64_t K) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < K; ++j) {
    x[j] = es_exp(x[j] - most);
    sum += x[j];
  }
  return sum;
}

// A row of logits becomes the gradient of its loss: p - ε / K, and less 1 - ε at the target.
template <class T> void slopes_row(const SoftmaxCall<T>& call, int64_t row) {
  const int64_t K = call.classes, target = call.target[row];
  T* x = call.logits + row * K;
  const Sums<T> of = biased(x, call.bias, K);
  const T wanted = x[target], sum = powers(x, of.most, K), smoothing = call.smoothing[0];
  const T nats = of.most - wanted + es_log(sum), scale = 1 / sum, share = smoothing / T(K);
  call.nats[row] = nats;
  call.loss[row] = smoothing ? nats + smoothing * (wanted - of.all / T(K)) : nats;  // the mean may be infinite
#pragma omp simd
  for (int64_t j = 0; j < K; ++j) x[j] = x[j] * scale - share;
  x[target] -= 1 - smoothing;
}

template <class T> void log_row(const SoftmaxCall<T>& call, int64_t row) {
  const int64_t K = call.classes;
  T* x = call.logits + row * K;
  const T most = biased(x, call.bias, K).most;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < K; ++j) sum += es_exp(x[j] - most);
  const T log_sum = most + es_log(sum);
#pragma omp simd
  for (int64_t j = 0; j < K; ++j) x[j] -= log_sum;
}

template <class T, class F> void share(const void* table, int64_t i, int64_t n, F f) {
  const auto call = table_at<SoftmaxCall<T>>(table);
  for (int64_t row = call.rows * i / n; row < call.rows * (i + 1) / n; ++row) f(call, row);
}

}  // namespace

#define ES_INTERFACE(T, S)                                                      \
  extern "C" void es_softmax_slopes_##S(void* table, int64_t i, int64_t n) {    \
    share<T>(table, i, n, slopes_row<T>);                                       \
  }                                                                             \
  extern "C" void es_softmax_log_##S(void* table, int64_t i, int64_t n) {       \
    share<T>(table, i, n, log_row<T>);                                          \
  }
ES_INTERFACE(float, f32)
ES_INTERFACE(double, f64)
