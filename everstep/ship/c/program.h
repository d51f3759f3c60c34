/* A recurrent network, written by everstep. Build it with any C++17 compiler of the GNU or Clang kind:

     c++ -O3 -march=native -fopenmp-simd -c model.cpp

   A model is read once and never changes: any number of sessions, in any number of threads, may share it. A session is
   one row, such as one sequence, and belongs to one thread at a time. */
#ifndef EVERSTEP_MODEL_H
#define EVERSTEP_MODEL_H

#include <stdint.h>

#define EVERSTEP_LEAVES @COUNT@ /* leaves of the state:
@LEAVES@ */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct everstep_model everstep_model;
typedef struct everstep_session everstep_session;

/* The weights, from the file model.bin; null: it cannot be read, or is of another model. */
everstep_model* everstep_open(const char* path);
/* After the last session has ended. */
void everstep_close(everstep_model* model);

/* A row before its first step; null: no memory. */
everstep_session* everstep_begin(const everstep_model* model);
/* The same row twice from here on; null: no memory. */
everstep_session* everstep_copy(const everstep_session* session);
void everstep_end(everstep_session* session);

/* What follows returns 0: done; 1: an input is out of its bounds, or there is no state yet to go on from; 2: no memory.
 */

@FORMS@
/* The numbers of a leaf of the state and how many bytes they take, to be read or set between calls; null: there is no
   such leaf. */
void* everstep_state(everstep_session* session, int leaf, int64_t* bytes);
/* Take a state that `everstep_state` gave. sizes: of the state, in this order:@SIZES@. */
int everstep_restore(everstep_session* session, const int64_t* sizes, const void* const* leaves, const int64_t* bytes);

#ifdef __cplusplus
}
#endif
#endif
