// Run-time library of the compiled engine: packed matrix products, a borrowed thread team and a barrier.
//
// The generated code of a cell multiplies a few rows (the batch) by a weight matrix at every step, so the weights are
// packed once per call into panels that the inner loop reads from first byte to last, and everything below is about
// reading them at the speed of the cache they lie in.
//
// Every element of a product is one chain of multiply-adds over k = 0, 1, 2, … that starts from zero (or from C). No
// kernel splits that chain (but for a single column, always in the same way), so a row's result depends neither on the
// other rows nor on how rows, panels and threads were divided: a padded batch equals its members alone, bit for bit.
// Keep it that way when tuning. (A product over steps, es_gemm_tn, adds up chains of some hundred steps; where they end
// depends on the number of steps alone.)
//
// Plain C interface; GCC or Clang vector extensions; compile with -std=gnu++17 -march=native, and with ES_F32, ES_F64 or
// ES_BF16 defined for the products of one kind of number alone, which takes a third of the time.

#if !defined(ES_F32) && !defined(ES_F64) && !defined(ES_BF16)
#define ES_F32
#define ES_F64
#define ES_BF16
#endif

#include <cstddef>

#include "rows.h"
#include "shares.h"
#include "tables.h"
#include "threads.h"

namespace {

// Matrices to pack, `jobs` entries behind the start of the table; and then one after the other what so many of the
// threads are to run.
struct Run {
  Body body;
  int64_t* table;
  int64_t threads, jobs, packs;
  Body then;
  int64_t* then_table;
  int64_t then_threads;
  Barrier done;
};

template <class T, bool PAIRS> void run_body(void* given, int64_t i, int64_t n) {
  Run* r = static_cast<Run*>(given);
  const int64_t some = r->threads < n ? r->threads : n, others = r->then_threads < n ? r->then_threads : n;
  for (int64_t k = 0; k < r->packs; ++k)
    packing_share<T, PAIRS>(table_at<Packing<T>>(r->table + r->jobs + k * ENTRIES<Packing<T>>), i, n);
  if (r->packs) wait(&r->done, n);
  if (r->body && i < some) r->body(r->table, i, some);
  if (!r->then) return;
  wait(&r->done, n);
  if (i < others) r->then(r->then_table, i, others);
}

// The entries of a call's tables, from their slots and the numbers that the call brings.
void fill(const int64_t* slots, int64_t entries, const int64_t* numbers, int64_t steps, int64_t* table) {
  for (int64_t k = 0; k < entries; ++k, slots += ENTRIES<Slot>) {
    const auto slot = table_at<Slot>(slots);
    table[k] = (slot.at < 0 ? 0 : numbers[slot.at]) + slot.plus + slot.each * steps;
  }
}

// `form`: a header and the slots of two tables. A next call with the same numbers has the other turn.
template <class T, bool PAIRS> void call(const int64_t* form, int64_t* numbers) {
  const auto header = table_at<CallHeader>(form);
  const auto arguments = table_at<Arguments>(numbers);
  const int64_t entries = header.entries + header.then_entries;
  int64_t* table = static_cast<int64_t*>(__builtin_alloca((entries + 1) * sizeof(int64_t)));
  fill(form + ENTRIES<CallHeader>, entries, numbers, arguments.steps, table);
  numbers[offsetof(Arguments, turn) / sizeof *numbers] = !arguments.turn;
  Run run = {header.loop, table,                  arguments.threads,      header.jobs, header.packs,
             header.then, table + header.entries, arguments.then_threads, {}};
  parallel(run_body<T, PAIRS>, &run, run.threads > run.then_threads ? run.threads : run.then_threads);
}

}  // namespace

extern "C" {

#define ES_INTERFACE(T, S)                                                                                            \
  int64_t es_panel_##S(void) { return PANEL<T>; }                                                                     \
  int64_t es_packed_size_##S(int64_t K, int64_t N) { return (N + PANEL<T> - 1) / PANEL<T> * PANEL<T> * K; }           \
  void es_pack_##S(const T* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, T* out) {                    \
    pack<T>(W, K, N, stride_k, stride_n, out);                                                                        \
  }                                                                                                                   \
  void es_gemm_##S(const T* A, int64_t lda, int64_t M, const T* packed, int64_t K, int64_t N, int64_t first,          \
                   int64_t last, T* C, int64_t ldc, int add, int from_end) {                                          \
    const auto part = [=](int64_t from, int64_t to) { gemm<T>(A, lda, M, packed, K, N, from, to, C, ldc, add != 0); }; \
    ordered(part, M, first, last, from_end != 0);                                                                     \
  }                                                                                                                   \
  int64_t es_gemm_tn_memory_##S(int64_t steps, int64_t M, int64_t N) { return gemm_tn_memory<T>(steps, M, N); }       \
  void es_gemm_tn_##S(const T* G, int64_t ldg, const T* X, int64_t ldx, int64_t steps, int64_t, int64_t N,            \
                      int64_t m0, int64_t m1, T* C, int64_t ldc, T* memory) {                                         \
    const Lines<T> g = {G, ldg, ALL, nullptr, 0, nullptr}, x = {X, ldx, ALL, nullptr, 0, nullptr};                    \
    gemm_tn<T>(g, x, steps, N, m0, m1, C, ldc, memory);                                                               \
  }                                                                                                                   \
  /* A body over `table`, if it is not null, after `packs` matrices, described `jobs` entries behind its start. */     \
  void es_run_##S(Body body, int64_t* table, int64_t threads, int64_t jobs, int64_t packs) {                           \
    Run run = {body, table, threads, jobs, packs, nullptr, nullptr, 1, {}};                                            \
    parallel(run_body<T, false>, &run, threads);                                                                       \
  }                                                                                                                    \
  void es_call_##S(const int64_t* form, int64_t* numbers) { call<T, false>(form, numbers); }                           \
  /* Bodies: a matrix packed (`Packing`), rows times it (`RowsProduct`), sums over steps and threads (`SumsHeader`). */\
  void es_panels_##S(void* table, int64_t i, int64_t n) { packing_share(table_at<Packing<T>>(table), i, n); }          \
  void es_rows_##S(void* table, int64_t i, int64_t n) { rows_share(table_at<RowsProduct<T>>(table), i, n); }           \
  void es_columns_##S(void* table, int64_t i, int64_t n) { sums_share<T>(static_cast<int64_t*>(table), i, n); }
#ifdef ES_F32
ES_INTERFACE(float, f32)
#endif
#ifdef ES_F64
ES_INTERFACE(double, f64)
#endif

// Products of numbers in bfloat16, added up in float, where the processor has them.
int64_t es_has_bf16(void) { return HAS_BF16; }
#ifdef ES_BF16
int64_t es_panel_bf16(void) { return PANEL<float>; }
int64_t es_packed_size_bf16(int64_t K, int64_t N) {
  return (N + PANEL<float> - 1) / PANEL<float> * PANEL<float> * ((K + 1) / 2);
}
void es_pack_bf16(const float* W, int64_t K, int64_t N, int64_t stride_k, int64_t stride_n, float* out) {
  pack_pairs(W, K, N, stride_k, stride_n, out);
}
void es_gemm_bf16(const float* A, int64_t lda, int64_t M, const float* packed, int64_t K, int64_t N, int64_t first,
                   int64_t last, float* C, int64_t ldc, int add, int from_end) {
  const auto part = [=](int64_t from, int64_t to) { gemm_bf16(A, lda, M, packed, K, N, from, to, C, ldc, add != 0); };
  ordered(part, M, first, last, from_end != 0);
}
void es_run_bf16(Body body, int64_t* table, int64_t threads, int64_t jobs, int64_t packs) {
  Run run = {body, table, threads, jobs, packs, nullptr, nullptr, 1, {}};
  parallel(run_body<float, true>, &run, threads);
}
void es_call_bf16(const int64_t* form, int64_t* numbers) { call<float, true>(form, numbers); }
void es_columns_bf16(void* table, int64_t i, int64_t n) {
  sums_share<float, true>(static_cast<int64_t*>(table), i, n);
}
#endif

void es_set_openmp(void* GOMP_parallel, void* omp_get_thread_num, void* omp_get_num_threads) {
  const bool all = GOMP_parallel && omp_get_thread_num && omp_get_num_threads;
  start_team = all ? reinterpret_cast<decltype(start_team)>(GOMP_parallel) : nullptr;
  team_index = reinterpret_cast<decltype(team_index)>(omp_get_thread_num);
  team_size = reinterpret_cast<decltype(team_size)>(omp_get_num_threads);
}

void es_parallel(Body body, void* table, int64_t wanted) { parallel(body, table, wanted); }

void es_assign(void* table) { assign(table_at<Assignment>(table)); }

void es_ragged(void* table, int64_t i, int64_t n) { ragged_share(table_at<RaggedCopy>(table), i, n); }

int64_t es_barrier_bytes(void) { return sizeof(Barrier); }

void es_barrier(void* barrier, int64_t n) { wait(static_cast<Barrier*>(barrier), n); }

}  // extern "C"
