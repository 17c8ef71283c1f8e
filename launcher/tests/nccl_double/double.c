// A test double of the NCCL functions that src/rank/nccl/api.rs uses. Every function with a
// communicator counts the calls that begin while another thread is inside one. All-reduces do
// nothing; every second one returns ncclInProgress, as with a non-blocking communicator.
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#ifndef VERSION
#define VERSION 22809
#endif

enum { SUCCESS = 0, IN_PROGRESS = 7 };

typedef struct { char internal[128]; } unique_id;

static atomic_int inside, overlaps, threads, sums, watches, pending, aborts;
static _Thread_local int seen, sums_of_this_thread;
static int communicator;

static void enter(void) {
  if (!seen) {
    seen = 1;
    atomic_fetch_add(&threads, 1);
  }
  if (atomic_fetch_add(&inside, 1) > 0) atomic_fetch_add(&overlaps, 1);
  // Long enough for another thread to enter.
  nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

static int leave(int code) {
  atomic_fetch_sub(&inside, 1);
  return code;
}

int ncclGetVersion(int *version) {
  *version = VERSION;
  return SUCCESS;
}

int ncclGetUniqueId(unique_id *id) {
  memset(id, 1, sizeof *id);
  return SUCCESS;
}

int ncclCommInitRankConfig(void **comm, int size, unique_id id, int rank, void *config) {
  *comm = &communicator;
  atomic_store(&pending, 3);
  return IN_PROGRESS;
}

int ncclCommGetAsyncError(void *comm, int *state) {
  enter();
  if (!sums_of_this_thread) atomic_fetch_add(&watches, 1);
  *state = SUCCESS;
  if (atomic_load(&pending) > 0) {
    atomic_fetch_sub(&pending, 1);
    *state = IN_PROGRESS;
  }
  return leave(SUCCESS);
}

int ncclAllReduce(const void *from, void *to, size_t count, int kind, int op, void *comm,
                  void *stream) {
  enter();
  sums_of_this_thread++;
  if (atomic_fetch_add(&sums, 1) % 2) return leave(SUCCESS);
  atomic_store(&pending, 3);
  return leave(IN_PROGRESS);
}

int ncclCommAbort(void *comm) {
  enter();
  atomic_fetch_add(&aborts, 1);
  return leave(SUCCESS);
}

const char *ncclGetErrorString(int code) { return "an error of the test double"; }

const char *ncclGetLastError(void *comm) {
  if (!comm) return "";
  enter();
  leave(SUCCESS);
  return "";
}

// Counters, for the tests.
int double_overlaps(void) { return atomic_load(&overlaps); }
int double_threads(void) { return atomic_load(&threads); }
int double_sums(void) { return atomic_load(&sums); }
// Calls of ncclCommGetAsyncError by threads without an all-reduce.
int double_watches(void) { return atomic_load(&watches); }
int double_aborts(void) { return atomic_load(&aborts); }
