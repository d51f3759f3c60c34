// The time loop of a leaky reservoir whose units have equally many connections each:
// h_t = (1 − a) ∘ h_{t-1} + a ∘ tanh(u_t + s W h_{t-1}), or in a closed loop, with y_t = R h_t + c,
// h_t = (1 − a) ∘ h_{t-1} + a ∘ tanh(u_t + s W h_{t-1} + F y_{t-1}).
//
// W is read once a step, from first byte to last, and a large one at the speed of memory: so its numbers are as short as
// they can be without loss (bfloat16 where they are so round), and columns take two bytes where that is enough. Slices of
// eight units lie interleaved, (units / 8, connections, 8): eight sums that wait for nothing of each other. Eight rows of
// the batch share one pass over W; a row's result does not depend on the others.
//
// Plain C interface; compiled behind math.h; GCC or Clang vector extensions.

namespace {

constexpr int64_t SLICE = 8;

template <class T> struct Eight;
template <> struct Eight<float> { typedef float type __attribute__((vector_size(8 * sizeof(float)))); };
template <> struct Eight<double> { typedef double type __attribute__((vector_size(8 * sizeof(double)))); };

struct Short { uint16_t bits; };  // bfloat16

inline float number(Short w) { return __builtin_bit_cast(float, uint32_t(w.bits) << 16); }
inline float number(float w) { return w; }
inline double number(double w) { return w; }

template <class T> struct Loop {
  int64_t batch, time, units, connections;
  const void* weights;
  const void* columns;
  double scale;
  const T* leak;           // (units,)
  T* ys;                   // (batch, time, units): u_t comes in, h_t goes out
  T* state;                // (batch, units)
  const int64_t* lengths;  // (batch,) or null
  const uint8_t* resets;   // (batch, time) or null
  T* memory;               // 2 · 8 · units
  int64_t outputs;         // features of y; 0: the loop is open, and there is nothing of what follows
  const T* back;           // F (units, outputs)
  const T* readout;        // R (outputs, units)
  const T* offset;         // c (outputs,)
  T* fed;                  // y_{t-1} (batch, outputs)
  T* made;                 // y_t (batch, time, outputs)
};

template <class T> bool live(const Loop<T>& loop, int64_t row, int64_t t) {
  return !loop.lengths || t < loop.lengths[row];
}

// One slice of units, at step t: sums over their connections, then what each row makes of them.
template <class T, class W, class I, class V>
inline void slice(const Loop<T>& loop, const T* h, T* next, int64_t first, int64_t t, int64_t row, int64_t rows) {
  constexpr int64_t B = sizeof(V) / sizeof(T);
  const W* w = (const W*)loop.weights + first * loop.connections;
  const I* c = (const I*)loop.columns + first * loop.connections;
  V sums[SLICE] = {};
  for (int64_t j = 0; j < loop.connections; ++j, w += SLICE, c += SLICE) {
#pragma GCC unroll 8
    for (int u = 0; u < SLICE; ++u) {
      V from;
      __builtin_memcpy(&from, h + c[u] * B, sizeof from);
      sums[u] += from * T(number(w[u]));
    }
  }
  T table[SLICE][B];
  __builtin_memcpy(table, sums, sizeof table);
  const int64_t count = loop.units - first < SLICE ? loop.units - first : SLICE;
  const T scale = T(loop.scale);
  for (int64_t b = 0; b < rows; ++b) {
    T* y = loop.ys + ((row + b) * loop.time + t) * loop.units + first;
    T fresh[SLICE] = {};
    for (int64_t u = 0; u < count; ++u) fresh[u] = y[u];
#pragma omp simd
    for (int64_t u = 0; u < SLICE; ++u) fresh[u] = es_tanh(fresh[u] + scale * table[u][b]);
    const bool alive = live(loop, row + b, t);
    for (int64_t u = 0; u < count; ++u) {
      const T old = h[(first + u) * B + b], a = loop.leak[first + u];
      const T now = alive ? (T(1) - a) * old + a * fresh[u] : old;
      next[(first + u) * B + b] = now;
      y[u] = alive ? now : T(0);
    }
  }
}

// F y_{t-1}, added to what comes from outside.
template <class T> void feed(const Loop<T>& loop, int64_t row, int64_t t) {
  T* u = loop.ys + (row * loop.time + t) * loop.units;
  const T* y = loop.fed + row * loop.outputs;
  for (int64_t i = 0; i < loop.units; ++i)
    for (int64_t d = 0; d < loop.outputs; ++d) u[i] += loop.back[i * loop.outputs + d] * y[d];
}

// y_t from the state of a row that goes on, zeros from one that has ended.
template <class T> void read(const Loop<T>& loop, int64_t row, int64_t t) {
  const T* h = loop.ys + (row * loop.time + t) * loop.units;
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

// The whole sequence of up to as many rows of the batch as V has numbers.
template <class T, class W, class I, class V> void block(const Loop<T>& loop, int64_t row, int64_t rows) {
  constexpr int64_t B = sizeof(V) / sizeof(T);
  T *h = loop.memory, *next = loop.memory + B * loop.units;
  for (int64_t i = 0; i < B * loop.units; ++i) h[i] = next[i] = 0;
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t i = 0; i < loop.units; ++i) h[i * B + b] = loop.state[(row + b) * loop.units + i];
  for (int64_t t = 0; t < loop.time; ++t) {
    for (int64_t b = 0; b < rows; ++b)
      if (loop.resets && loop.resets[(row + b) * loop.time + t] && live(loop, row + b, t)) {
        for (int64_t i = 0; i < loop.units; ++i) h[i * B + b] = 0;
        for (int64_t d = 0; d < loop.outputs; ++d) loop.fed[(row + b) * loop.outputs + d] = 0;
      }
    for (int64_t b = 0; b < rows && loop.outputs; ++b) feed(loop, row + b, t);
    for (int64_t first = 0; first < loop.units; first += SLICE) slice<T, W, I, V>(loop, h, next, first, t, row, rows);
    for (int64_t b = 0; b < rows && loop.outputs; ++b) read(loop, row + b, t);
    T* last = h;
    h = next, next = last;
  }
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t i = 0; i < loop.units; ++i) loop.state[(row + b) * loop.units + i] = h[i * B + b];
}

template <class T, class W, class I> void run(const Loop<T>& loop) {
  for (int64_t row = 0; row < loop.batch; row += SLICE) {
    const int64_t rows = loop.batch - row < SLICE ? loop.batch - row : SLICE;
    if (rows == 1)
      block<T, W, I, T>(loop, row, 1);
    else
      block<T, W, I, typename Eight<T>::type>(loop, row, rows);
  }
}

template <class T> void dispatch(const int64_t* table, double scale) {
  const Loop<T> loop = {table[0],
                        table[1],
                        table[2],
                        table[3],
                        (const void*)table[4],
                        (const void*)table[5],
                        scale,
                        (const T*)table[6],
                        (T*)table[7],
                        (T*)table[8],
                        (const int64_t*)table[9],
                        (const uint8_t*)table[10],
                        (T*)table[11],
                        table[14],
                        (const T*)table[15],
                        (const T*)table[16],
                        (const T*)table[17],
                        (T*)table[18],
                        (T*)table[19]};
  const bool short_weights = table[12], short_columns = table[13];
  if (short_weights && short_columns)
    run<T, Short, uint16_t>(loop);
  else if (short_weights)
    run<T, Short, int32_t>(loop);
  else if (short_columns)
    run<T, T, uint16_t>(loop);
  else
    run<T, T, int32_t>(loop);
}

}  // namespace

extern "C" void es_reservoir_f32(const int64_t* table, double scale) { dispatch<float>(table, scale); }
extern "C" void es_reservoir_f64(const int64_t* table, double scale) { dispatch<double>(table, scale); }
