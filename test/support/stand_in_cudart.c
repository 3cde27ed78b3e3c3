/* The CUDA runtime calls that cuda.py makes, on ordinary memory: copies happen, kernels do not.
   A captured stream keeps its copies and makes them when the graph is launched. With `broken` set,
   calls answer with it, as all do once a kernel has failed, and what is given back is counted
   but not freed. So many allocations succeed as `memory_left` says, any number with -1. Graphs
   forget the copies of kind `forgets`: 1 up, 2 down. The last error of a capture is `remembered`
   until it is asked for. */
#include <stdlib.h>
#include <string.h>

typedef struct { void *to; const void *from; size_t size; int kind; } copy;
typedef struct { copy copies[8]; int count; } graph;

static graph *recording;
int copies_made, graphs_launched, graphs_alive, streams_alive, memory_alive, refuse_capture,
    broken, memory_left = -1, integrated, forgets, device_flags, remembered;

#ifndef DEVICE_COUNT_ERROR
#define DEVICE_COUNT_ERROR 0
#endif
int cudaGetDeviceCount(int *count) { *count = 1; return DEVICE_COUNT_ERROR; }
int cudaSetDeviceFlags(unsigned flags) { device_flags = (int)flags; return 0; }
int cudaSetDevice(int device) { return device; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? integrated
        : attribute == 16 ? 14 : -1;
    return device;
}
int cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = 1 << 30; return 0; }
static int take(void **out, size_t size) {
    if (memory_left == 0) return 2;
    if (memory_left > 0) memory_left--;
    *out = calloc(size, 1);
    memory_alive++;
    return 0;
}
static int drop(void *what) { if (!broken) free(what); return broken; }
static int give(void *memory) { if (memory) memory_alive--; return drop(memory); }
int cudaMalloc(void **out, size_t size) { return take(out, size); }
int cudaHostAlloc(void **out, size_t size, unsigned flags) { (void)flags; return take(out, size); }
int cudaFree(void *memory) { return give(memory); }
int cudaFreeHost(void *memory) { return give(memory); }
static void make(copy c) { memcpy(c.to, c.from, c.size); copies_made++; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    copy c = {to, from, size, kind};
    (void)stream;
    if (kind != 1 && kind != 2) return 21;
    if (recording) recording->copies[recording->count++] = c; else make(c);
    return 0;
}
int cudaStreamCreateWithFlags(void **out, unsigned flags) {
    *out = malloc(1);
    streams_alive++;
    return flags != 1;
}
int cudaStreamSynchronize(void *stream) { (void)stream; return recording ? 900 : broken; }
int cudaStreamDestroy(void *stream) { streams_alive--; return drop(stream); }
int cudaStreamBeginCapture(void *stream, int mode) {
    (void)stream;
    if (refuse_capture || recording || mode != 1) return remembered = 900;
    recording = calloc(1, sizeof(graph));
    return 0;
}
int cudaStreamEndCapture(void *stream, void **out) {
    (void)stream;
    *out = recording;
    recording = NULL;
    graphs_alive++;
    return remembered = *out == NULL;
}
int cudaGraphInstantiateWithFlags(void **out, void *from, unsigned long long flags) {
    graph *made = malloc(sizeof(graph));
    *made = *(graph *)from;
    *out = made;
    graphs_alive++;
    return flags != 0;
}
int cudaGraphDestroy(void *old) { if (old) graphs_alive--; return drop(old); }
int cudaGraphExecDestroy(void *old) { return cudaGraphDestroy(old); }
int cudaGetLastError(void) { int last = remembered; remembered = 0; return last; }
int cudaGraphLaunch(void *from, void *stream) {
    graph *g = from;
    (void)stream;
    for (int i = 0; i < g->count; i++) if (g->copies[i].kind != forgets) make(g->copies[i]);
    graphs_launched++;
    return 0;
}
const char *cudaGetErrorString(int code) { (void)code; return "no such thing here"; }
