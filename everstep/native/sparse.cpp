// The time loop of a leaky reservoir whose units have equally many connections each:
// h_t = (1 − a) ∘ h_{t-1} + a ∘ tanh(u_t + s W h_{t-1}), or in a closed loop, with y_t = R h_t + c,
// h_t = (1 − a) ∘ h_{t-1} + a ∘ tanh(u_t + s W h_{t-1} + F y_{t-1}).
//
// W is read once a step, from first byte to last, and a large one at the speed of memory: so its numbers are as short as
// they can be without loss (bfloat16 where they are so round), and columns take two bytes where that is enough. Slices of
// eight units lie interleaved, (units / 8, connections, 8): eight sums that wait for nothing of each other. Eight rows of
// the batch share one pass over W; a row's result does not depend on the others. Threads own eight rows each, or where
// rows are few, units of all of them, and wait for one another once a step (in a closed loop twice).
//
// Plain C interface; compiled behind math.h and `ReservoirLoop` of wirings/reservoir/loop.py; GCC or Clang vector
// extensions.

namespace {

constexpr int64_t SLICE = 8;

template <class T> struct Eight;
template <> struct Eight<float> { typedef float type __attribute__((vector_size(8 * sizeof(float)))); };
template <> struct Eight<double> { typedef double type __attribute__((vector_size(8 * sizeof(double)))); };

struct Short { uint16_t bits; };  // bfloat16

// Who computes a block of rows, and which units of it are this one's: from first to last, padding included.
struct Team {
  int64_t thread, count, first, last;
  Wait barrier;
  void* gate;
  void wait() const {
    if (count > 1) barrier(gate, count);
  }
};

template <class T> bool live(const ReservoirLoop<T>& loop, int64_t row, int64_t t) {
  return !loop.lengths || t < loop.lengths[row];
}

template <class T> inline typename Eight<T>::type wide(const Short* w) {
  typedef uint16_t Halves __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(32)));
  Halves halves;
  __builtin_memcpy(&halves, w, sizeof halves);
  const Bits bits = __builtin_convertvector(halves, Bits) << 16;
  return __builtin_convertvector((Eight<float>::type)bits, typename Eight<T>::type);
}

template <class T> inline typename Eight<T>::type wide(const T* w) {
  typename Eight<T>::type weights;
  __builtin_memcpy(&weights, w, sizeof weights);
  return weights;
}

// W h of one slice of units, without the scale, for one row.
template <class T, class W, class I> inline void multiply(const ReservoirLoop<T>& loop, const T* h, T* out, int64_t first) {
  using V = typename Eight<T>::type;
  const W* w = (const W*)loop.weights + first * loop.connections;
  const I* c = (const I*)loop.columns + first * loop.connections;
  const auto part = [&](int64_t j) {
    const I* at = c + j * SLICE;
    const V from = {h[at[0]], h[at[1]], h[at[2]], h[at[3]], h[at[4]], h[at[5]], h[at[6]], h[at[7]]};
    return from * wide<T>(w + j * SLICE);
  };
  V sums = {}, others = {};  // two, so that one waits less for the other
  int64_t j = 0;
  for (; j + 3 < loop.connections; j += 4) {
    sums += part(j), others += part(j + 1);
    sums += part(j + 2), others += part(j + 3);
  }
  for (; j < loop.connections; ++j) sums += part(j);
  sums += others;
  __builtin_memcpy(out + first, &sums, sizeof sums);
}

// The same for eight rows, whose numbers lie interleaved.
template <class T, class W, class I> inline void multiply_eight(const ReservoirLoop<T>& loop, const T* h, T* out, int64_t first) {
  using V = typename Eight<T>::type;
  const W* w = (const W*)loop.weights + first * loop.connections;
  const I* c = (const I*)loop.columns + first * loop.connections;
  V sums[SLICE] = {};
  for (int64_t j = 0; j < loop.connections; ++j, w += SLICE, c += SLICE) {
    const V weights = wide<T>(w);
#pragma GCC unroll 8
    for (int u = 0; u < SLICE; ++u) {
      V from;
      __builtin_memcpy(&from, h + c[u] * SLICE, sizeof from);
      sums[u] += from * weights[u];
    }
  }
  __builtin_memcpy(out + first * SLICE, sums, sizeof sums);
}

// tanh x = -m / (2 + m) with m = e^{-2|x|} - 1, in one division: with e^r - 1 = 2 p / (q - p) (Cephes), n and r as in
// es_exp, m = (2^n 2 p + (2^n - 1) (q - p)) / (q - p). Nothing cancels, since n <= 0.
inline double quick_tanh(double x) {
  const double a = x < 0 ? -x : x;
  const double y = -2. * (a > 20. ? 20. : a);
  const double shifted = y * 1.4426950408889634073599 + 6755399441055744.;
  const int64_t n = __builtin_bit_cast(int64_t, shifted) - __builtin_bit_cast(int64_t, 6755399441055744.);
  const double k = shifted - 6755399441055744.;
  const double r = (y - k * 6.93145751953125E-1) - k * 1.42860682030941723212E-6;
  const es_ratio near = es_expm1_near(r);
  const double power = __builtin_bit_cast(double, (uint64_t)(n + 1023) << 52);
  const double d = near.q - near.p, m = power * (near.p + near.p) + (power - 1.) * d;
  const double t = -m / (d + d + m);
  return x < 0 ? -t : t;
}

inline float quick_tanh(float x) { return es_tanh(x); }

// What a row alone makes of its sums.
template <class T>
void settle(const ReservoirLoop<T>& loop, const T* h, T* next, int64_t t, int64_t row, int64_t first, int64_t last) {
  T* y = loop.ys + row * loop.stride + t * loop.units;
  const T scale = T(loop.scale);
  const T* leak = loop.leak;
  if (!live(loop, row, t)) {
    for (int64_t i = first; i < last; ++i) next[i] = h[i], y[i] = 0;
    return;
  }
#pragma omp simd
  for (int64_t i = first; i < last; ++i) {
    next[i] = (T(1) - leak[i]) * h[i] + leak[i] * quick_tanh(y[i] + scale * next[i]);
    y[i] = next[i];
  }
}

// What up to eight rows, whose numbers lie interleaved, make of theirs.
template <class T>
void settle_eight(const ReservoirLoop<T>& loop, const T* h, T* next, int64_t t, int64_t row, int64_t rows, int64_t first,
                  int64_t last) {
  const T scale = T(loop.scale);
  bool alive[8] = {};
  T* ys[8] = {};
  for (int64_t b = 0; b < rows; ++b) {
    alive[b] = live(loop, row + b, t);
    ys[b] = loop.ys + (row + b) * loop.stride + t * loop.units;
  }
  for (int64_t i = first; i < last; ++i) {
    const T a = loop.leak[i];
    T fresh[8] = {};
    for (int64_t b = 0; b < rows; ++b) fresh[b] = ys[b][i];
#pragma omp simd
    for (int64_t b = 0; b < 8; ++b)
      fresh[b] = (T(1) - a) * h[8 * i + b] + a * quick_tanh(fresh[b] + scale * next[8 * i + b]);
    for (int64_t b = 0; b < 8; ++b) next[8 * i + b] = alive[b] ? fresh[b] : h[8 * i + b];
    for (int64_t b = 0; b < rows; ++b) ys[b][i] = alive[b] ? fresh[b] : T(0);
  }
}

// F y_{t-1}, added to what comes from outside.
template <class T> void feed(const ReservoirLoop<T>& loop, int64_t row, int64_t t, int64_t first, int64_t last) {
  T* u = loop.ys + row * loop.stride + t * loop.units;
  const T* y = loop.fed + row * loop.outputs;
  for (int64_t i = first; i < last; ++i)
    for (int64_t d = 0; d < loop.outputs; ++d) u[i] += loop.back[i * loop.outputs + d] * y[d];
}

// y_t from the state of a row that goes on, zeros from one that has ended.
template <class T> void read(const ReservoirLoop<T>& loop, int64_t row, int64_t t) {
  const T* h = loop.ys + row * loop.stride + t * loop.units;
  T* y = loop.made + (row * loop.time + t) * loop.outputs;
  for (int64_t d = 0; d < loop.outputs; ++d) {
    T sum = 0;
    const T* weights = loop.readout + d * loop.units;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < loop.units; ++i) sum += weights[i] * h[i];
    y[d] = live(loop, row, t) ? sum + loop.offset[d] : T(0);
    if (live(loop, row, t)) loop.fed[row * loop.outputs + d] = y[d];
  }
}

// The whole sequence of one row of the batch, or of up to eight.
template <class T, class W, class I, int64_t B>
void block(const ReservoirLoop<T>& loop, int64_t row, int64_t rows, T* memory, const Team& team) {
  const int64_t size = (loop.units + SLICE - 1) / SLICE * SLICE * B;
  const int64_t first = team.first, last = team.last < loop.units ? team.last : loop.units;
  T *h = memory, *next = memory + size;
  for (int64_t i = first * B; i < team.last * B; ++i) h[i] = next[i] = 0;
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t i = first; i < last; ++i) h[i * B + b] = loop.state[(row + b) * loop.units + i];
  team.wait();
  for (int64_t t = 0; t < loop.time; ++t) {
    bool anew = false;
    for (int64_t b = 0; b < rows; ++b)
      if (loop.resets && loop.resets[(row + b) * loop.time + t] && live(loop, row + b, t)) {
        anew = true;
        for (int64_t i = first; i < last; ++i) h[i * B + b] = 0;
        for (int64_t d = 0; d < loop.outputs && !team.thread; ++d) loop.fed[(row + b) * loop.outputs + d] = 0;
      }
    if (anew) team.wait();
    for (int64_t b = 0; b < rows && loop.outputs; ++b) feed(loop, row + b, t, first, last);
    for (int64_t i = first; i < last; i += SLICE) {
      if constexpr (B == 1)
        multiply<T, W, I>(loop, h, next, i);
      else
        multiply_eight<T, W, I>(loop, h, next, i);
    }
    if constexpr (B == 1)
      settle(loop, h, next, t, row, first, last);
    else
      settle_eight(loop, h, next, t, row, rows, first, last);
    team.wait();
    if (loop.outputs) {
      for (int64_t b = 0; b < rows && !team.thread; ++b) read(loop, row + b, t);
      team.wait();
    }
    T* before = h;
    h = next, next = before;
  }
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t i = first; i < last; ++i) loop.state[(row + b) * loop.units + i] = h[i * B + b];
  team.wait();  // the next rows lie elsewhere in the same memory
}

template <class T, class W, class I> void run(const ReservoirLoop<T>& loop, int64_t thread, int64_t threads) {
  const int64_t slices = (loop.units + SLICE - 1) / SLICE;
  const Team alone = {0, 1, 0, slices * SLICE, nullptr, nullptr};
  const Team together = {thread,       threads,  slices * thread / threads * SLICE, slices * (thread + 1) / threads * SLICE,
                         loop.barrier, loop.gate};
  const Team team = loop.shared ? together : alone;
  T* const memory = loop.memory + (loop.shared ? 0 : thread * 2 * SLICE * SLICE * slices);
  for (int64_t row = loop.shared ? 0 : thread * SLICE; row < loop.batch; row += loop.shared ? SLICE : threads * SLICE) {
    const int64_t rows = loop.batch - row < SLICE ? loop.batch - row : SLICE;
    if (rows == 1)
      block<T, W, I, 1>(loop, row, 1, memory, team);
    else
      block<T, W, I, SLICE>(loop, row, rows, memory, team);
  }
}

template <class T> void dispatch(const int64_t* table, int64_t thread, int64_t threads) {
  const auto loop = table_at<ReservoirLoop<T>>(table);
  if (loop.short_weights && loop.short_columns)
    run<T, Short, uint16_t>(loop, thread, threads);
  else if (loop.short_weights)
    run<T, Short, int32_t>(loop, thread, threads);
  else if (loop.short_columns)
    run<T, T, uint16_t>(loop, thread, threads);
  else
    run<T, T, int32_t>(loop, thread, threads);
}

}  // namespace

extern "C" void es_reservoir_f32(const int64_t* table, int64_t i, int64_t n) { dispatch<float>(table, i, n); }
extern "C" void es_reservoir_f64(const int64_t* table, int64_t i, int64_t n) { dispatch<double>(table, i, n); }
