// One step of a recurrent network, written by everstep: see model.h.

#include "model.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

// what a step does not need is there all the same
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-function"

namespace {

@STEP@

// y = x W, or y + x W: x (rows, depth), W (depth, width), whole.
void product(const T* x, int64_t ldx, int64_t rows, const T* w, int64_t depth, int64_t width, int64_t first,
             int64_t last, T* y, int64_t ldy, int add, int) {
  if (first >= last) return;
  for (int64_t i = 0; i < rows; ++i) {
    T* const out = y + i * ldy;
    if (!add) std::memset(out, 0, width * sizeof(T));
    int64_t d = 0;
    for (; d + 4 <= depth; d += 4) {
      const T a = x[i * ldx + d], b = x[i * ldx + d + 1], c = x[i * ldx + d + 2], e = x[i * ldx + d + 3];
      const T* const v = w + d * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j)
        out[j] += a * v[j] + b * v[width + j] + c * v[2 * width + j] + e * v[3 * width + j];
    }
    for (; d < depth; ++d) {
      const T a = x[i * ldx + d];
      const T* const v = w + d * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) out[j] += a * v[j];
    }
  }
}

const unsigned char DIGEST[32] = {@DIGEST@};
const int64_t NUMBERS = @TOTAL@, STATE = @STATE@, MEMORY = @MEMORY@;
const int64_t STARTS[] = {@STARTS@};

T* numbers(int64_t count) {
  return static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64));
}

}  // namespace

struct everstep_model {
  T* weights;
};

struct everstep_session {
  const everstep_model* model;
  T *state, *memory;
};

extern "C" {

everstep_model* everstep_open(const char* path) {
  std::FILE* const file = std::fopen(path, "rb");
  if (!file) return nullptr;
  unsigned char digest[32];
  T* const weights = numbers(NUMBERS);
  const bool read = weights && std::fread(digest, 1, 32, file) == 32 && !std::memcmp(digest, DIGEST, 32) &&
                    (int64_t)std::fread(weights, sizeof(T), NUMBERS, file) == NUMBERS && std::fgetc(file) == EOF;
  std::fclose(file);
  everstep_model* const model = read ? new (std::nothrow) everstep_model{weights} : nullptr;
  if (!model) std::free(weights);
  return model;
}

void everstep_close(everstep_model* model) {
  if (!model) return;
  std::free(model->weights);
  delete model;
}

everstep_session* everstep_begin(const everstep_model* model) {
  everstep_session* const s = new (std::nothrow) everstep_session{model, numbers(STATE), numbers(MEMORY)};
  if (!s) return nullptr;
  if (!s->state || !s->memory) {
    everstep_end(s);
    return nullptr;
  }
@BEGIN@
  return s;
}

everstep_session* everstep_copy(const everstep_session* session) {
  everstep_session* const s = everstep_begin(session->model);
  if (s) std::memcpy(s->state, session->state, STATE * sizeof(T));
  return s;
}

void everstep_end(everstep_session* session) {
  if (!session) return;
  std::free(session->state);
  std::free(session->memory);
  delete session;
}

int everstep_step(everstep_session* s, @READS@, float* y) {
@TABLE@
  const int64_t nought = 0, one = 1, starts[2] = {0, 1};
  int64_t a[@SLOTS@] = {0};
  a[@ROWS@] = a[@THREADS@] = a[@BLOCK@] = 1;
  a[@STARTS_OF@] = (int64_t)starts;
  a[@ORDER@] = a[@OFFSET@] = a[@OUTER@] = (int64_t)&nought;
  a[@LENGTH@] = (int64_t)&one;
  a[@GEMM@] = (int64_t)product;
  a[@MEMORY_OF@] = (int64_t)s->memory;
  a[@PANEL@] = INT64_MAX / 2;
@ENTRIES@
  run(a, 0, 1);
  return 0;
}

float* everstep_state(everstep_session* session, int leaf) {
  return leaf < 0 || leaf >= EVERSTEP_LEAVES ? nullptr : session->state + STARTS[leaf];
}

}  // extern "C"
