// The inner nodes of trees by an N-ary Tree-LSTM, level by level, and the derivative: what `ahead` and `back` of
// trees/tree_lstm.py say of one level, for all of them in one call.
//
// Rows of states lie level by level, the roots first; every inner node has N children, and those of inner node j are the
// N rows from `trees` + N j on. So the children of a level are one matrix as they lie, and a product needs no copy.
// Threads share the inner nodes of a level, each with its product, and wait for each other before the next one. Plain C
// interface; compiled behind math.h and `TreeCall` of trees/compiled_tree_lstm.py.

namespace {

template <class T>
using Gemm = void (*)(const T* A, int64_t lda, int64_t M, const T* packed, int64_t K, int64_t N, int64_t first,
                      int64_t last, T* C, int64_t ldc, int add, int from_end);

// Sums become gates i, f_1 … f_N, g, o in their place; then c, tanh(c) and h.
template <class T> void node_ahead(const TreeCall<T>& call, int64_t j) {
  const int64_t H = call.size, N = call.arity, wide = (3 + N) * H;
  T* const s = call.gates + j * wide;
  const T* const x = call.x + (call.fed ? j * wide : 0);
  const T* const of_children = call.c + (call.trees + N * j) * H;
  T *const c = call.c + call.rows[j] * H, *const h = call.h + call.rows[j] * H, *const squashed = call.squashed + j * H;
#pragma omp simd
  for (int64_t u = 0; u < (1 + N) * H; ++u) s[u] = es_sigmoid(s[u] + x[u]);
  T* const g = s + (1 + N) * H;
  T* const o = g + H;
#pragma omp simd
  for (int64_t u = 0; u < H; ++u) {
    g[u] = es_tanh(g[u] + x[(1 + N) * H + u]);
    o[u] = es_sigmoid(o[u] + x[(2 + N) * H + u]);
    c[u] = s[u] * g[u];
  }
  for (int64_t k = 0; k < N; ++k)
#pragma omp simd
    for (int64_t u = 0; u < H; ++u) c[u] += s[(1 + k) * H + u] * of_children[k * H + u];
#pragma omp simd
  for (int64_t u = 0; u < H; ++u) {
    squashed[u] = es_tanh(c[u]);
    h[u] = o[u] * squashed[u];
  }
}

// From what is above a node's h and c: what is above its sums, and above the children's c.
template <class T> void node_back(const TreeCall<T>& call, int64_t j) {
  const int64_t H = call.size, N = call.arity, wide = (3 + N) * H;
  const T *const i = call.gates + j * wide, *const g = i + (1 + N) * H, *const o = g + H;
  const T *const squashed = call.squashed + j * H, *const by_h = call.by_h + call.rows[j] * H;
  T *const above = call.above + j * wide, *const by_c = call.by_c + call.rows[j] * H;
  T *const by_g = above + (1 + N) * H, *const by_o = by_g + H;
#pragma omp simd
  for (int64_t u = 0; u < H; ++u) {
    const T all = by_c[u] + by_h[u] * o[u] * (1 - squashed[u] * squashed[u]);
    by_c[u] = all;
    by_o[u] = by_h[u] * squashed[u] * o[u] * (1 - o[u]);
    above[u] = all * g[u] * i[u] * (1 - i[u]);
    by_g[u] = all * i[u] * (1 - g[u] * g[u]);
  }
  for (int64_t k = 0; k < N; ++k) {
    const int64_t child = (call.trees + N * j + k) * H;
    const T *const f = i + (1 + k) * H, *const old = call.c + child;
    T *const by_f = above + (1 + k) * H, *const by_old = call.by_c + child;
#pragma omp simd
    for (int64_t u = 0; u < H; ++u) {
      by_f[u] = by_c[u] * old[u] * f[u] * (1 - f[u]);
      by_old[u] = by_c[u] * f[u];
    }
  }
}

// Inner nodes first … last of one level.
template <class T, bool BACK> void nodes(const TreeCall<T>& call, int64_t first, int64_t last) {
  const int64_t wide = (3 + call.arity) * call.size, both = call.arity * call.size;
  const int64_t below = (call.trees + call.arity * first) * call.size, columns = BACK ? both : wide;
  const auto gemm = reinterpret_cast<Gemm<T>>(call.gemm);
  const int64_t panels = (columns + call.panel - 1) / call.panel;
  if (BACK)
    for (int64_t j = first; j < last; ++j) node_back(call, j);
  if (BACK)
    gemm(call.above + first * wide, wide, last - first, call.packed, wide, both, 0, panels, call.by_h + below, both, 1,
         0);
  else
    gemm(call.h + below, both, last - first, call.packed, both, wide, 0, panels, call.gates + first * wide, wide, 0, 0);
  if (!BACK)
    for (int64_t j = first; j < last; ++j) node_ahead(call, j);
}

// `ends`: of the inner nodes of each level, from the roots down.
template <class T, bool BACK> void run(const int64_t* table, int64_t thread, int64_t threads) {
  const auto call = table_at<TreeCall<T>>(table);
  for (int64_t turn = 0; turn < call.levels; ++turn) {
    const int64_t level = BACK ? turn : call.levels - 1 - turn, start = level ? call.ends[level - 1] : 0;
    const int64_t count = call.ends[level] - start;
    const int64_t first = start + count * thread / threads, last = start + count * (thread + 1) / threads;
    if (first < last) nodes<T, BACK>(call, first, last);
    if (threads > 1) call.wait(call.gate, threads);
  }
}

}  // namespace

#define ES_TREE(T, S)                                                                                                \
  extern "C" void es_tree_ahead_##S(const int64_t* table, int64_t i, int64_t n) { run<T, false>(table, i, n); } \
  extern "C" void es_tree_back_##S(const int64_t* table, int64_t i, int64_t n) { run<T, true>(table, i, n); }

ES_TREE(float, f32)
ES_TREE(double, f64)
