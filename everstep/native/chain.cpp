// A linear-chain CRF, each row by itself: −log p of a sequence (or log Z), its derivatives, and the best sequence.
//
// The state of a row is a_j = log Σ e^(score) over all beginnings that end in tag j, less the largest of these. A step is
//   z_j = log Σ_i e^(a_i) W_ij + c_j + x_j with W_ij = e^(A_ij − c_j), c_j = max_i A_ij:
// K exponentials and a product with a matrix. What of its terms is too small a number for that is nothing beside a sum
// above LEAST; a smaller sum is made anew of K logarithms. So the result is exact, however far apart scores are.
//
// Rows of K numbers are padded to `wide`, whole vectors, by what never counts. What differences are taken of is added up
// in double. Plain C interface; compiled behind math.h and `ChainCall` of heads/compiled_chain.py; GCC or Clang vector
// extensions.

namespace {

constexpr int BYTES = 64;
template <class T> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(BYTES))); };
template <> struct Vector<double> { typedef double type __attribute__((vector_size(BYTES))); };
template <class T> constexpr int LANES = BYTES / int(sizeof(T));

constexpr int64_t SUMMED = 64;   // steps whose pairs of tags are added up by themselves: long sums lose digits
constexpr double NEVER = -1e30;  // as in heads/chain.py
template <class T> constexpr T LEAST = sizeof(T) == 4 ? T(__FLT_MIN__ / __FLT_EPSILON__) : T(__DBL_MIN__ / __DBL_EPSILON__);

template <class T> inline typename Vector<T>::type load(const T* from) {
  typename Vector<T>::type v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T> inline void store(T* to, typename Vector<T>::type v) { __builtin_memcpy(to, &v, sizeof v); }

template <class T> inline int64_t length_of(const ChainCall<T>& call, int64_t row) {
  return call.lengths ? call.lengths[row] : call.time;
}

// f(j) for all j, a vector at a time.
template <class T, class F> inline void each(int64_t wide, F f) {
  for (int64_t j = 0; j < wide; j += LANES<T>) {
#pragma omp simd
    for (int k = 0; k < LANES<T>; ++k) f(j + k);
  }
}

template <class T> inline T largest(const T* z, int64_t wide) {
  auto top = load(z);
  for (int64_t j = LANES<T>; j < wide; j += LANES<T>) {
    const auto v = load(z + j);
    top = v > top ? v : top;
  }
  T most = top[0];
  for (int k = 1; k < LANES<T>; ++k) most = top[k] > most ? top[k] : most;
  return most;
}

// Parts of their sum.
template <class T> inline void normalise(const T* from, T* to, int64_t wide) {
  auto parts = load(from);
  for (int64_t j = LANES<T>; j < wide; j += LANES<T>) parts += load(from + j);
  T sum = parts[0];
  for (int k = 1; k < LANES<T>; ++k) sum += parts[k];
  each<T>(wide, [&](int64_t j) { to[j] = from[j] / sum; });
}

// out_j = Σ_i p_i M_ij, where rows of M are `wide` apart.
template <class T> inline void product(const T* p, const T* M, int64_t tags, int64_t wide, T* out) {
  for (int64_t j = 0; j < wide; j += LANES<T>) {
    typename Vector<T>::type even = {}, odd = {}, third = {}, fourth = {};  // which wait for nothing of each other
    const T* m = M + j;
    int64_t i = 0;
    for (; i + 3 < tags; i += 4) {
      even += p[i] * load(m + i * wide), odd += p[i + 1] * load(m + (i + 1) * wide);
      third += p[i + 2] * load(m + (i + 2) * wide), fourth += p[i + 3] * load(m + (i + 3) * wide);
    }
    for (; i < tags; ++i) even += p[i] * load(m + i * wide);
    store(out + j, (even + odd) + (third + fourth));
  }
}

// W and c, or W transposed.
template <class T> void weights(const ChainCall<T>& call, bool transposed, T* W, T* c) {
  const int64_t tags = call.tags, wide = call.wide;
  each<T>(wide, [&](int64_t j) { c[j] = T(NEVER); });
  for (int64_t i = 0; i < tags; ++i)
    for (int64_t j = 0; j < tags; ++j) {
      const T a = call.transitions[i * tags + j];
      c[j] = i == 0 || a > c[j] ? a : c[j];
    }
  for (int64_t i = 0; i < tags; ++i) {
    each<T>(wide, [&](int64_t j) { W[i * wide + j] = T(!transposed); });
    for (int64_t j = 0; j < tags; ++j)
      W[i * wide + j] = es_exp(transposed ? call.transitions[j * tags + i] - c[i] : call.transitions[i * tags + j] - c[j]);
  }
}

// log Σ_i e^(a_i + A_ij).
template <class T> T logarithm(const ChainCall<T>& call, const T* a, int64_t j) {
  const T* A = call.transitions + j;
  const int64_t tags = call.tags;
  T most = a[0] + A[0], sum = 0;
  for (int64_t i = 1; i < tags; ++i) most = a[i] + A[i * tags] > most ? a[i] + A[i * tags] : most;
  if (most == -__builtin_inff()) return most;
  for (int64_t i = 0; i < tags; ++i) sum += es_exp(a[i] + A[i * tags] - most);
  return most + es_log(sum);
}

// z = log s + c, and logarithms for sums that are too small, which are −1 from then on.
template <class T> inline void step(const ChainCall<T>& call, const T* a, const T* W, const T* c, T* p, T* s, T* z) {
  each<T>(call.wide, [&](int64_t j) { p[j] = es_exp(a[j]); });
  product(p, W, call.tags, call.wide, s);
  T least = s[0];
#pragma omp simd reduction(min : least)
  for (int64_t j = 0; j < call.wide; ++j) least = s[j] < least ? s[j] : least;
  each<T>(call.wide, [&](int64_t j) { z[j] = es_log(s[j]) + c[j]; });
  if (least >= LEAST<T>) return;
  for (int64_t j = 0; j < call.tags; ++j)
    if (!(s[j] >= LEAST<T>)) z[j] = logarithm(call, a, j), s[j] = -1;
}

// nats: log Z less the target's score, or log Z itself; infinite where that has no sequence, or the target is forbidden.
template <class T> void forward_row(const ChainCall<T>& call, int64_t row, const T* W, const T* c, T* memory) {
  const int64_t tags = call.tags, wide = call.wide, length = length_of(call, row);
  const T* x = call.scores + row * call.time * tags;
  const int64_t* y = call.target ? call.target + row * call.time : nullptr;
  T *p = memory, *z = p + wide, *own = z + wide;  // two states and the sums, where they are not kept
  const auto place = [&](T* kept, int64_t t, int64_t k) {
    return call.state ? kept + (row * call.time + t) * wide : own + k * wide;
  };
  double total = 0;
  bool possible = true;
  const auto add = [&](double sum, double gold) {
    possible = possible && !((y ? gold : sum) <= NEVER / 2);
    total += sum - gold;
  };
  const T* a = nullptr;
  for (int64_t t = 0; t < length; ++t, x += tags) {
    if (t)
      step(call, a, W, c, p, place(call.sums, t, 2), z);
    else
      each<T>(wide, [&](int64_t j) { z[j] = T(NEVER); });
    for (int64_t j = 0; j < tags; ++j) z[j] = (t ? z[j] : call.start[j]) + x[j];
    const T top = largest(z, wide);
    T* next = place(call.state, t, t & 1);
    each<T>(wide, [&](int64_t j) { next[j] = z[j] - top; });
    a = next;
    add(top, y ? double(x[y[t]]) + (t ? call.transitions[y[t - 1] * tags + y[t]] : call.start[y[0]]) : 0.);
  }
  if (length) {
    T sum = 0;
    for (int64_t j = 0; j < tags; ++j) z[j] = a[j] + call.end[j];
    const T top = largest(z, wide);
    for (int64_t j = 0; j < tags; ++j) sum += es_exp(z[j] - top);
    add(double(top) + es_log(sum), y ? call.end[y[length - 1]] : 0.);
  }
  call.nats[row] = possible ? T(total) : y ? T(__builtin_inf()) : -T(__builtin_inf());
}

// Derivatives of nats: by the scores what p(tag at t) is, by A what p(tags at t − 1 and t) is, less 1 for the target's.
template <class T> void backward_row(const ChainCall<T>& call, int64_t row, const T* turned, T* by, T* memory) {
  const int64_t tags = call.tags, wide = call.wide, length = length_of(call, row);
  const T gradient = call.gradient[row];
  const T *state = call.state + row * call.time * wide, *sums = call.sums + row * call.time * wide;
  const int64_t* y = call.target ? call.target + row * call.time : nullptr;
  T* by_x = call.by_scores + row * call.time * tags;
  T *p = memory, *g = p + wide, *u = g + wide, *q = u + wide, *pairs = q + wide;  // g: p(tag at t)
  T *by_start = by + tags * wide, *by_end = by_start + wide;
  for (int64_t k = length * tags; k < call.time * tags; ++k) by_x[k] = 0;
  if (length == 0) return;
  each<T>(tags * wide, [&](int64_t k) { pairs[k] = 0; });
  const auto settle = [&] {
    for (int64_t i = 0; i < tags; ++i)
      for (int64_t j = 0; j < tags; ++j) by[i * wide + j] += pairs[i * wide + j] * turned[j * wide + i];
    each<T>(tags * wide, [&](int64_t k) { pairs[k] = 0; });
  };
  const T* a = state + (length - 1) * wide;
  each<T>(wide, [&](int64_t j) { g[j] = T(NEVER); });
  for (int64_t j = 0; j < tags; ++j) g[j] = a[j] + call.end[j];
  const T top = largest(g, wide);
  each<T>(wide, [&](int64_t j) { g[j] = es_exp(g[j] - top); });
  normalise(g, g, wide);
  each<T>(wide, [&](int64_t j) { by_end[j] += gradient * g[j]; });
  if (y) by_end[y[length - 1]] -= gradient;
  for (int64_t t = length - 1;; --t) {
    for (int64_t j = 0; j < tags; ++j) by_x[t * tags + j] = gradient * g[j];
    if (y) by_x[t * tags + y[t]] -= gradient;
    if (t == 0) break;
    const T *before = state + (t - 1) * wide, *s = sums + t * wide;
    each<T>(wide, [&](int64_t j) { p[j] = es_exp(before[j]); });
    each<T>(wide, [&](int64_t j) { u[j] = s[j] > 0 ? g[j] / s[j] : T(0); });
    product(u, turned, tags, wide, q);
    for (int64_t i = 0; i < tags; ++i) each<T>(wide, [&](int64_t j) { pairs[i * wide + j] += gradient * p[i] * u[j]; });
    each<T>(wide, [&](int64_t j) { q[j] *= p[j]; });
    for (int64_t j = 0; j < tags; ++j)
      if (s[j] < 0 && g[j] != 0) {
        const T whole = logarithm(call, before, j);
        for (int64_t i = 0; i < tags; ++i) {
          const T part = g[j] * es_exp(before[i] + call.transitions[i * tags + j] - whole);
          q[i] += part;
          by[i * wide + j] += gradient * part;
        }
      }
    if (y) by[y[t - 1] * wide + y[t]] -= gradient;
    normalise(q, g, wide);  // as it is but for rounding, which would add up
    if (t % SUMMED == 0) settle();
  }
  each<T>(wide, [&](int64_t j) { by_start[j] += gradient * g[j]; });
  if (y) by_start[y[0]] -= gradient;
  settle();
}

// The best sequence (Viterbi 1967), the lowest tag of equal ones.
template <class T> void best_row(const ChainCall<T>& call, int64_t row, const T* A, int32_t* moves, T* memory) {
  typedef typename Vector<T>::type V;
  typedef decltype(V{} > V{}) Index;
  const int64_t tags = call.tags, wide = call.wide, length = length_of(call, row);
  const T* x = call.scores + row * call.time * tags;
  int64_t* tag = call.best + row * call.time;
  T *a = memory, *z = a + wide;
  for (int64_t t = length; t < call.time; ++t) tag[t] = 0;
  if (length == 0) return;
  each<T>(wide, [&](int64_t j) { a[j] = T(NEVER); });
  for (int64_t j = 0; j < tags; ++j) a[j] = call.start[j] + x[j];
  for (int64_t t = 1; t < length; ++t) {
    x += tags;
    for (int64_t j = 0; j < wide; j += LANES<T>) {
      V most = a[0] + load(A + j);
      Index which = {}, at = {};
      for (int64_t i = 1; i < tags; ++i) {
        at += 1;
        const V v = a[i] + load(A + i * wide + j);
        const Index more = v > most;
        most = more ? v : most;
        which = more ? at : which;
      }
      store(z + j, most);
      for (int k = 0; k < LANES<T>; ++k) moves[t * wide + j + k] = int32_t(which[k]);
    }
    for (int64_t j = 0; j < tags; ++j) z[j] += x[j];
    const T top = largest(z, wide);
    each<T>(wide, [&](int64_t j) { a[j] = z[j] - top; });
  }
  int64_t last = 0;
  for (int64_t j = 1; j < tags; ++j)
    if (a[j] + call.end[j] > a[last] + call.end[last]) last = j;
  for (int64_t t = length - 1; t >= 0; --t) {
    tag[t] = last;
    if (t) last = moves[t * wide + last];
  }
}

enum class What { forward, backward, best };

// Rows in turn; `thread` has memory of its own.
template <class T, What WHAT> void run(const int64_t* table, int64_t thread, int64_t threads) {
  const auto call = table_at<ChainCall<T>>(table);
  const int64_t tags = call.tags, wide = call.wide;
  T *const matrix = call.memory + thread * (2 * tags + 8) * wide, *const c = matrix + tags * wide, *const rest = c + wide;
  if (WHAT == What::best)
    for (int64_t i = 0; i < tags; ++i)
      for (int64_t j = 0; j < wide; ++j) matrix[i * wide + j] = j < tags ? call.transitions[i * tags + j] : T(NEVER);
  else
    weights(call, WHAT == What::backward, matrix, c);
  T* const by = WHAT == What::backward ? call.by_chain + thread * (tags + 2) * wide : nullptr;
  for (int64_t k = 0; by && k < (tags + 2) * wide; ++k) by[k] = 0;
  for (int64_t row = thread; row < call.batch; row += threads) {
    if (WHAT == What::forward) forward_row(call, row, matrix, c, rest);
    if (WHAT == What::backward) backward_row(call, row, matrix, by, rest);
    if (WHAT == What::best) best_row(call, row, matrix, call.moves + thread * call.time * wide, rest);
  }
}

}  // namespace

#define ES_CHAIN(T, S)                                                                                                \
  extern "C" void es_chain_forward_##S(const int64_t* table, int64_t i, int64_t n) { run<T, What::forward>(table, i, n); } \
  extern "C" void es_chain_backward_##S(const int64_t* table, int64_t i, int64_t n) { run<T, What::backward>(table, i, n); } \
  extern "C" void es_chain_best_##S(const int64_t* table, int64_t i, int64_t n) { run<T, What::best>(table, i, n); }

ES_CHAIN(float, f32)
ES_CHAIN(double, f64)
