/* One step of a recurrent network, written by everstep. Build it with any C++17 compiler of the GNU or Clang kind:

     c++ -O3 -march=native -fopenmp-simd -c model.cpp

   A model is read once and never changes: any number of sessions, in any number of threads, may share it. A session is
   one sequence, and belongs to one thread at a time. */
#ifndef EVERSTEP_MODEL_H
#define EVERSTEP_MODEL_H

#include <stdint.h>

#define EVERSTEP_INPUT @INPUT@   /* numbers that a step reads */
#define EVERSTEP_OUTPUT @OUTPUT@ /* numbers that it gives */
#define EVERSTEP_LEAVES @COUNT@  /* leaves of the state:
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

/* A sequence before its first step; null: no memory. */
everstep_session* everstep_begin(const everstep_model* model);
/* The same sequence twice from here on; null: no memory. */
everstep_session* everstep_copy(const everstep_session* session);
void everstep_end(everstep_session* session);

/* One step: y gets EVERSTEP_OUTPUT numbers. 0: done; 1: there is no such token. */
int everstep_step(everstep_session* session, @READS@, float* y);
/* The numbers of a leaf of the state, to be read or set between steps; null: there is no such leaf. */
float* everstep_state(everstep_session* session, int leaf);

#ifdef __cplusplus
}
#endif
#endif
