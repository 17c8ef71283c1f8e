// Replaces the functions of the CUDA runtime that dw calls. Loaded with LD_PRELOAD, because the CPU
// build of libtorch loads the real runtime.
// FAKE_DEVICES: number of devices (default 0). FAKE_SET: result of cudaSetDevice (default 0).
#include <stdio.h>
#include <stdlib.h>

static int number(const char *name) {
  const char *text = getenv(name);
  return text ? atoi(text) : 0;
}

int cudaGetDeviceCount(int *count) {
  *count = number("FAKE_DEVICES");
  return *count > 0 ? 0 : 100;
}

int cudaSetDevice(int device) {
  (void)device;
  return number("FAKE_SET");
}

int cudaDeviceGetPCIBusId(char *text, int length, int device) {
  return snprintf(text, length, "0000:%02X:00.0", device) < length ? 0 : 1;
}

const char *cudaGetErrorString(int code) {
  switch (code) {
    case 2: return "out of memory";
    case 100: return "no CUDA-capable device is detected";
    case 101: return "invalid device ordinal";
    case 214: return "uncorrectable ECC error encountered";
    default: return "unknown error";
  }
}
