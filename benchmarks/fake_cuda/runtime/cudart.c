/* What torch calls of the CUDA runtime, for one device that computes nothing. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties
#define OK cudaSuccess
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return OK; }
cudaError_t cudaGetDevice(int *d) { *d = 0; return OK; }
cudaError_t cudaSetDevice(int d) { return OK; }
cudaError_t cudaGetLastError(void) { return OK; }
cudaError_t cudaPeekAtLastError(void) { return OK; }
cudaError_t cudaDriverGetVersion(int *v) { *v = 13020; return OK; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13020; return OK; }
cudaError_t cudaDeviceSynchronize(void) { return OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return OK; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = cudaStreamCaptureStatusNone; return OK; }
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b) { if (a) *a = 0; if (b) *b = 0; return OK; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = (cudaStream_t)malloc(64); return OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = (cudaEvent_t)malloc(64); return OK; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return OK; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return OK; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return OK; }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = (size_t)140 << 30; return OK; }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { *p = malloc(n ? n : 1); return OK; }
cudaError_t cudaFreeHost(void *p) { free(p); return OK; }
cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) { return OK; }
cudaError_t cudaHostUnregister(void *p) { return OK; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) { memset(a, 0, sizeof *a); a->type = cudaMemoryTypeHost; return OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p); strcpy(p->name, "stub"); p->major = 9; p->minor = 0; p->multiProcessorCount = 132;
  p->totalGlobalMem = (size_t)140 << 30; p->warpSize = 32; p->maxThreadsPerMultiProcessor = 2048; p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 49152; p->regsPerMultiprocessor = 65536; return OK; }
/* The name of the same in CUDA 12. */
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return cudaGetDeviceProperties(p, d); }
