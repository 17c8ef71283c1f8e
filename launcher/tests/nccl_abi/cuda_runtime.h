// The one type that nccl.h takes from the CUDA runtime, as driver_types.h declares it: the check needs no CUDA.
typedef struct CUstream_st *cudaStream_t;
