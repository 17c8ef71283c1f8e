// Compile-time checks of the bindings in src/rank/nccl/api.rs against the real nccl.h.
#include <stddef.h>
#include <nccl.h>

#define SAME(a, b) _Static_assert((a) == (b), #a " is not " #b)

SAME(sizeof(ncclUniqueId), 128);
SAME(offsetof(ncclConfig_t, size), 0);
SAME(offsetof(ncclConfig_t, magic), 8);
SAME(offsetof(ncclConfig_t, version), 12);
SAME(offsetof(ncclConfig_t, blocking), 16);
SAME(offsetof(ncclConfig_t, cgaClusterSize), 20);
SAME(offsetof(ncclConfig_t, minCTAs), 24);
SAME(offsetof(ncclConfig_t, maxCTAs), 28);
SAME(offsetof(ncclConfig_t, netName), 32);
SAME(offsetof(ncclConfig_t, splitShare), 40);
SAME(NCCL_CONFIG_UNDEF_INT, -2147483647 - 1);
SAME(ncclSuccess, 0);
SAME(ncclInProgress, 7);
SAME(ncclFloat32, 7);
SAME(ncclFloat64, 8);
SAME(ncclBfloat16, 9);
SAME(ncclSum, 0);
SAME(ncclMax, 2);
SAME(ncclMin, 3);
SAME(sizeof(ncclResult_t), sizeof(int));
SAME(sizeof(ncclComm_t), sizeof(void *));
SAME(sizeof(cudaStream_t), sizeof(void *));

ncclResult_t (*version)(int *) = ncclGetVersion;
ncclResult_t (*unique_id)(ncclUniqueId *) = ncclGetUniqueId;
ncclResult_t (*init_rank)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *) =
    ncclCommInitRankConfig;
ncclResult_t (*async_error)(ncclComm_t, ncclResult_t *) = ncclCommGetAsyncError;
ncclResult_t (*all_reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t,
                           cudaStream_t) = ncclAllReduce;
ncclResult_t (*abort_comm)(ncclComm_t) = ncclCommAbort;
const char *(*error_string)(ncclResult_t) = ncclGetErrorString;
const char *(*last_error)(ncclComm_t) = ncclGetLastError;
const ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;
