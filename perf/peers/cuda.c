/* What stands in for the CUDA driver and runtime where there is no GPU (perf/peers/original.py).
 *
 * A device's memory is the host's: a copy is a memcpy in the thread that asks for it, done when the
 * call returns, so that streams and events have nothing to wait for.  Pinned memory is memory whose
 * pages were touched.  Nothing else of CUDA is here; what a program asks beyond it, it does not find.
 */
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

enum { VERSION = 12080, OK = 0, OUT_OF_MEMORY = 2 };

static int here; /* what every handle points to */

int cudaRuntimeGetVersion(int *version) { *version = VERSION; return OK; }
int cudaDriverGetVersion(int *version) { *version = VERSION; return OK; }

int cuInit(unsigned flags) { (void)flags; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)attribute, (void)device;
    *value = 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &here; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
int cuCtxSetCurrent(void *context) { (void)context; return OK; }
int cuCtxGetCurrent(void **context) { *context = &here; return OK; }
int cuCtxSynchronize(void) { return OK; }
int cuGetErrorString(int error, const char **words) { (void)error; *words = "stand-in"; return OK; }
int cuGetErrorName(int error, const char **words) { (void)error; *words = "stand-in"; return OK; }

int cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = &here; return OK; }
int cuStreamDestroy_v2(void *stream) { (void)stream; return OK; }
int cuStreamSynchronize(void *stream) { (void)stream; return OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    (void)stream, (void)event, (void)flags;
    return OK;
}
int cuEventCreate(void **event, unsigned flags) { (void)flags; *event = &here; return OK; }
int cuEventDestroy_v2(void *event) { (void)event; return OK; }
int cuEventRecord(void *event, void *stream) { (void)event, (void)stream; return OK; }
int cuEventQuery(void *event) { (void)event; return OK; }
int cuEventSynchronize(void *event) { (void)event; return OK; }

int cudaHostAlloc(void **memory, size_t size, unsigned flags)
{
    (void)flags;
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, how, -1, 0);
    return *memory == MAP_FAILED ? OUT_OF_MEMORY : OK;
}
int cudaFreeHost(void *memory) { (void)memory; return OK; } /* it goes with the process */
int cudaHostRegister(void *memory, size_t size, unsigned flags)
{
    (void)memory, (void)size, (void)flags;
    return OK;
}
int cudaHostGetDevicePointer(void **device, void *host, unsigned flags)
{
    (void)flags;
    *device = host;
    return OK;
}
int cudaHostUnregister(void *memory) { (void)memory; return OK; }

int cuMemcpyHtoDAsync_v2(unsigned long long device, const void *host, size_t size, void *stream)
{
    (void)stream;
    memcpy((void *)device, host, size);
    return OK;
}
int cuMemcpyDtoHAsync_v2(void *host, unsigned long long device, size_t size, void *stream)
{
    (void)stream;
    memcpy(host, (const void *)device, size);
    return OK;
}
