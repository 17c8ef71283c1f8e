// The only type of the CUDA runtime that nccl.h uses, as declared in driver_types.h, so that the
// check needs no CUDA.
typedef struct CUstream_st *cudaStream_t;
