// A recurrent network, written by everstep: see model.h.

#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

// what a form does not need is there all the same
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"

namespace {

const unsigned char DIGEST[32] = {@DIGEST@};
const int64_t BYTES = @BYTES@;
const int SIZES = @SIZES@;

// Memory of one call, in blocks that stay for the next.
struct Arena {
  std::vector<std::vector<double>> blocks;
  size_t block = 0, used = 0;

  template <class T>
  T* take(int64_t count) {
    const size_t need = (static_cast<size_t>(count > 0 ? count : 0) * sizeof(T) + 64) / sizeof(double) + 8;
    while (block < blocks.size() && used + need > blocks[block].size()) ++block, used = 0;
    if (block == blocks.size()) blocks.emplace_back(std::max<size_t>(need, 1 << 13)), used = 0;
    double* const found = blocks[block].data() + used;
    used += need;
    return reinterpret_cast<T*>(found);
  }
};

// Gives back at its end what was taken since.
struct Mark {
  Arena& arena;
  const size_t block, used;
  explicit Mark(Arena& of) : arena(of), block(of.block), used(of.used) {}
  ~Mark() { arena.block = block, arena.used = used; }
};

template <class T> T most(T a, T b) { return a != a || a > b ? a : b; }
template <class T> T least(T a, T b) { return a != a || a < b ? a : b; }
// As PyTorch compares in sorting: NaN is above all, and a NaN that came first stays the largest or smallest.
template <class T> bool above(T a, T b) { return a > b || (a != a && b == b); }
template <class T> bool below(T a, T b) { return a < b || (b != b && a == a); }
template <class T> bool smaller(T a, T b) { return a < b || (a != a && b == b); }
template <class T> T sigmoid(T x) { return 1 / (1 + std::exp(-x)); }
template <class T> T sign(T x) { return x > 0 ? T(1) : x < 0 ? T(-1) : x; }
template <class T> T softplus(T x, T beta, T threshold) {
  return x * beta > threshold ? x : std::log1p(std::exp(x * beta)) / beta;
}
template <class T> T lowest() {
  return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::lowest();
}
template <class T> T highest() {
  return std::numeric_limits<T>::has_infinity ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::max();
}
inline int64_t floored(int64_t a, int64_t b) { return a / b - (a % b && (a < 0) != (b < 0)); }
inline int64_t modulo(int64_t a, int64_t b) { return a - b * floored(a, b); }
template <class T> T modulo(T a, T b) {
  const T rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
inline int64_t within(int64_t place, int64_t size) { return place < 0 ? place + size : place; }

// y = a b, a (rows, depth), b (depth, width): the strides of both, one of b's is 1; y side by side.
template <class T>
void product(const T* a, int64_t a0, int64_t a1, const T* b, int64_t b0, int64_t b1, int64_t rows, int64_t depth,
             int64_t width, T* y) {
  for (int64_t i = 0; i < rows; ++i) {
    T* const out = y + i * width;
    if (b1 == 1) {
      for (int64_t j = 0; j < width; ++j) out[j] = 0;
      int64_t d = 0;
      for (; d + 4 <= depth; d += 4) {
        const T p = a[i * a0 + d * a1], q = a[i * a0 + (d + 1) * a1];
        const T r = a[i * a0 + (d + 2) * a1], t = a[i * a0 + (d + 3) * a1];
        const T *const v = b + d * b0, *const w = v + b0, *const x = w + b0, *const z = x + b0;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) out[j] += p * v[j] + q * w[j] + r * x[j] + t * z[j];
      }
      for (; d < depth; ++d) {
        const T p = a[i * a0 + d * a1];
        const T* const v = b + d * b0;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) out[j] += p * v[j];
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        const T* const v = b + j * b1;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < depth; ++d) sum += a[i * a0 + d * a1] * v[d];
        out[j] = sum;
      }
    }
  }
}

// Softmax, or its logarithm, over the middle dimension of (outer, size, inner).
template <class T>
void softmax(const T* x, int64_t outer, int64_t size, int64_t inner, bool log, T* y) {
  for (int64_t i = 0; i < outer; ++i)
    for (int64_t j = 0; j < inner; ++j) {
      const T* const in = x + i * size * inner + j;
      T* const out = y + i * size * inner + j;
      T top = lowest<T>();
      for (int64_t k = 0; k < size; ++k) top = most(in[k * inner], top);
      T sum = 0;
      for (int64_t k = 0; k < size; ++k) sum += out[k * inner] = std::exp(in[k * inner] - top);
      if (log) {
        const T rest = top + std::log(sum);
        for (int64_t k = 0; k < size; ++k) out[k * inner] = in[k * inner] - rest;
      } else {
        for (int64_t k = 0; k < size; ++k) out[k * inner] /= sum;
      }
    }
}

template <class T>
void layer_norm(const T* x, int64_t rows, int64_t size, const T* scale, const T* shift, double eps, T* y) {
  for (int64_t i = 0; i < rows; ++i, x += size, y += size) {
    T mean = 0, variance = 0;
    for (int64_t k = 0; k < size; ++k) mean += x[k];
    mean /= static_cast<T>(size);
    for (int64_t k = 0; k < size; ++k) variance += (x[k] - mean) * (x[k] - mean);
    const T by = 1 / std::sqrt(variance / static_cast<T>(size) + static_cast<T>(eps));
    for (int64_t k = 0; k < size; ++k) y[k] = (x[k] - mean) * by * (scale ? scale[k] : T(1)) + (shift ? shift[k] : T(0));
  }
}

// Sorts a line of numbers in place, equal ones in the order of their places, which it writes too.
template <class T>
void sorted(T* x, int64_t* places, int64_t size, int64_t stride, bool descending) {
  std::vector<T> line(size > 0 ? size : 0);
  std::vector<int64_t> order(line.size());
  for (size_t k = 0; k < line.size(); ++k) line[k] = x[k * stride], order[k] = k;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return descending ? above(line[a], line[b]) : below(line[a], line[b]); });
  for (size_t k = 0; k < line.size(); ++k) x[k * stride] = line[order[k]], places[k * stride] = order[k];
}

// Sizes (n, channels, height, width), and how a window moves over height and width.
struct Planes {
  int64_t n, channels, height, width;
};
struct Moves {
  int64_t down, right, above, left, apart_down, apart_right, groups;
};

template <class T>
void convolve(const T* x, Planes in, const T* w, Planes kernel, const T* bias, Moves how, T* y, Planes out) {
  const int64_t each = out.channels / how.groups;  // kernel.channels are those of one group
  for (int64_t n = 0; n < out.n; ++n)
    for (int64_t o = 0; o < out.channels; ++o)
      for (int64_t i = 0; i < out.height; ++i)
        for (int64_t j = 0; j < out.width; ++j) {
          T sum = bias ? bias[o] : T(0);
          for (int64_t c = 0; c < kernel.channels; ++c)
            for (int64_t p = 0; p < kernel.height; ++p) {
              const int64_t row = i * how.down - how.above + p * how.apart_down;
              if (row < 0 || row >= in.height) continue;
              const T* const line = x + ((n * in.channels + o / each * kernel.channels + c) * in.height + row) * in.width;
              const T* const v = w + ((o * kernel.channels + c) * kernel.height + p) * kernel.width;
              for (int64_t q = 0; q < kernel.width; ++q) {
                const int64_t column = j * how.right - how.left + q * how.apart_right;
                if (column >= 0 && column < in.width) sum += line[column] * v[q];
              }
            }
          *y++ = sum;
        }
}

template <class T>
void pool(const T* x, Planes in, int64_t height, int64_t width, Moves how, T* y, Planes out) {
  for (int64_t n = 0; n < out.n * out.channels; ++n)
    for (int64_t i = 0; i < out.height; ++i)
      for (int64_t j = 0; j < out.width; ++j) {
        T top = lowest<T>();
        for (int64_t p = 0; p < height; ++p)
          for (int64_t q = 0; q < width; ++q) {
            const int64_t row = i * how.down - how.above + p * how.apart_down;
            const int64_t column = j * how.right - how.left + q * how.apart_right;
            if (row >= 0 && row < in.height && column >= 0 && column < in.width)
              top = most(x[(n * in.height + row) * in.width + column], top);
          }
        *y++ = top;
      }
}

void keep(std::vector<char>& leaf, const void* numbers, int64_t bytes) {
  leaf.resize(bytes > 0 ? bytes : 0);
  if (bytes > 0) std::memcpy(leaf.data(), numbers, bytes);
}

}  // namespace

struct everstep_model {
  std::vector<double> weights;
};

struct everstep_session {
  const everstep_model* model;
  std::vector<char> state[EVERSTEP_LEAVES + 1];
  int64_t sizes[SIZES + 1] = {0};
  Arena arena;
};

extern "C" {

everstep_model* everstep_open(const char* path) try {
  std::FILE* const file = std::fopen(path, "rb");
  if (!file) return nullptr;
  unsigned char digest[32];
  auto model = std::make_unique<everstep_model>();
  model->weights.resize(BYTES / sizeof(double) + 1);
  const bool read = std::fread(digest, 1, 32, file) == 32 && !std::memcmp(digest, DIGEST, 32) &&
                    static_cast<int64_t>(std::fread(model->weights.data(), 1, BYTES, file)) == BYTES &&
                    std::fgetc(file) == EOF;
  std::fclose(file);
  return read ? model.release() : nullptr;
} catch (const std::bad_alloc&) {
  return nullptr;
}

void everstep_close(everstep_model* model) { delete model; }

everstep_session* everstep_begin(const everstep_model* model) try {
  auto s = std::make_unique<everstep_session>();
  s->model = model;
  const char* const stored = reinterpret_cast<const char*>(model->weights.data());
@BEGIN@
  return s.release();
} catch (const std::bad_alloc&) {
  return nullptr;
}

everstep_session* everstep_copy(const everstep_session* session) try {
  auto s = std::make_unique<everstep_session>();
  s->model = session->model;
  for (int k = 0; k < EVERSTEP_LEAVES; ++k) s->state[k] = session->state[k];
  for (int k = 0; k < SIZES; ++k) s->sizes[k] = session->sizes[k];
  return s.release();
} catch (const std::bad_alloc&) {
  return nullptr;
}

void everstep_end(everstep_session* session) { delete session; }

@FORMS@

void* everstep_state(everstep_session* session, int leaf, int64_t* bytes) {
  if (leaf < 0 || leaf >= EVERSTEP_LEAVES) return nullptr;
  *bytes = session->state[leaf].size();
  return session->state[leaf].data();
}

int everstep_restore(everstep_session* session, const int64_t* sizes, const void* const* leaves, const int64_t* bytes) try {
  for (int k = 0; k < SIZES; ++k) session->sizes[k] = sizes[k];
  for (int k = 0; k < EVERSTEP_LEAVES; ++k) keep(session->state[k], leaves[k], bytes[k]);
  return 0;
} catch (const std::bad_alloc&) {
  return 2;
}

}  // extern "C"
