// A borrowed team of threads, and a barrier for it.

#pragma once

#include <cstdint>
#include <sched.h>

#include "tables.h"
#include "vectors.h"

namespace {

// PyTorch's own OpenMP pool: a second one would compete with it for the cores.
void (*start_team)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
int (*team_index)() = nullptr;
int (*team_size)() = nullptr;

struct Work {
  Body body;
  void* data;
};

void work(void* given) {
  const Work* w = static_cast<Work*>(given);
  w->body(w->data, team_index(), team_size());
}

// The runtime may give fewer threads than wanted, so the size of the team is asked inside it.
void parallel(Body body, void* data, int64_t wanted) {
  if (!start_team || wanted <= 1) return body(data, 0, 1);
  Work w{body, data};
  start_team(work, &w, unsigned(wanted), 0);
}

struct Barrier {
  int64_t arrived;
  char apart[120];  // each word on a line of its own, however the memory is aligned: arriving disturbs no one's wait
  int64_t round;
  char rest[120];
};

ES_INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The last to arrive opens the next round. No one can miss it: a round ends only after all have read its number.
void wait(Barrier* b, int64_t n) {
  if (n <= 1) return;
  const int64_t round = __atomic_load_n(&b->round, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == n) {
    __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&b->round, round + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&b->round, __ATOMIC_ACQUIRE) == round;) {
    if (spins < 2000) {
      ++spins;
      relax();
    } else {
      sched_yield();  // more threads than cores: let the others come
    }
  }
}

}  // namespace
