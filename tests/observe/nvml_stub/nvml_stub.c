/* A stub of libnvidia-ml.so.1: no driver, no GPU, only answers read from the file that KVGAUGE_NVML_STUB names.
 *
 * The file holds lines `key=value` and is read again at every call, so that a test can change the machine between two
 * calls. Numbers that are not there are 0, which is NVML_SUCCESS where a return code is meant.
 *
 *   generation=1          sessions and handles of another generation are refused: the driver was restarted
 *   init=9 count=2 driver=580.95
 *   gpu0.handle=15        return code of the lookup; gpu0.call=15 is that of every call on the device
 *   gpu0.uuid= .name= .total= .free= .reserved=   gpu0.memory_v2=3 .memory_v1=3 .uuid_code=3 .name_code=3
 *   gpu0.processes=3 gpu0.procs=12:4096,13:none   return code, and pid:bytes of each process
 *   gpu0.mig=1 .mig_code=3 .slots=7 and gpu0.mig2.* like a GPU, with .g= .c= .memory_mib= ; no uuid: an empty slot
 *
 * Every call appends its name to KVGAUGE_NVML_STUB with ".calls" added, where that file exists.
 * -DWITHOUT_MEMORY_V2, -DWITHOUT_PROCESSES_V3: libraries of older drivers. Struct layouts follow nvml.h. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25 };
enum { GPUS = 64, SLOTS = 16, NO_SLOT = -1 };

typedef struct {
    int gpu, slot;
    long session;
} device;

typedef struct {
    unsigned long long total, free, used;
} memory_v1;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2;

typedef struct {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
} process;

typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} attributes;

static device handles[GPUS][SLOTS + 1];
static long opened_generation, session;
static int users;

static char *machine(void) {
    static char text[1 << 16];
    FILE *file = fopen(getenv("KVGAUGE_NVML_STUB"), "r");
    if (!file) abort();
    text[0] = '\n';
    size_t size = fread(text + 1, 1, sizeof text - 2, file);
    fclose(file);
    text[size + 1] = 0;
    return text;
}

static const char *value(const char *key) {
    static char found[1024];
    char wanted[128];
    snprintf(wanted, sizeof wanted, "\n%s=", key);
    char *at = strstr(machine(), wanted);
    if (!at) return NULL;
    snprintf(found, sizeof found, "%.*s", (int)strcspn(at + strlen(wanted), "\n"), at + strlen(wanted));
    return found;
}

static unsigned long long number(const char *key) {
    const char *text = value(key);
    return text ? strtoull(text, NULL, 10) : 0;
}

static const char *key_of(const device *which, const char *field) {
    static char key[64];
    if (which->slot == NO_SLOT)
        snprintf(key, sizeof key, "gpu%d.%s", which->gpu, field);
    else
        snprintf(key, sizeof key, "gpu%d.mig%d.%s", which->gpu, which->slot, field);
    return key;
}

static unsigned long long of(const device *which, const char *field) { return number(key_of(which, field)); }

static void note(const char *call) {
    char path[4096];
    snprintf(path, sizeof path, "%s.calls", getenv("KVGAUGE_NVML_STUB"));
    FILE *file = fopen(path, "r+");
    if (!file) return;
    fseek(file, 0, SEEK_END);
    fprintf(file, "%s\n", call);
    fclose(file);
}

static int refused(const char *call) {
    note(call);
    return users == 0 || opened_generation != (long)number("generation") ? UNINITIALIZED : 0;
}

static int refused_on(const device *which, const char *call, const char *code) {
    int answer = refused(call);
    if (answer) return answer;
    if (!which || which->session != session) return INVALID_ARGUMENT;
    answer = (int)of(which, "call");
    return answer || !code ? answer : (int)of(which, code);
}

static int text_of(const char *found, char *into, unsigned length) {
    if (!found) found = "";
    if (strlen(found) >= length) return INSUFFICIENT_SIZE;
    strcpy(into, found);
    return 0;
}

static int hand_out(int gpu, int slot, device **into) {
    device *handle = &handles[gpu][slot + 1];
    *handle = (device){gpu, slot, session};
    *into = handle;
    return 0;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    note(__func__);
    int answer = (int)number("init");
    if (answer) return answer;
    users++;
    session++;
    opened_generation = (long)number("generation");
    return 0;
}

int nvmlShutdown(void) {
    int answer = refused(__func__);
    if (users) users--;
    return answer;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stub";
}

int nvmlSystemGetDriverVersion(char *into, unsigned length) {
    int answer = refused(__func__);
    if (!answer) answer = (int)number("driver_code");
    return answer ? answer : text_of(value("driver"), into, length);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int answer = refused(__func__);
    if (!answer) *count = (unsigned)number("count");
    return answer;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **into) {
    int answer = refused(__func__);
    if (answer) return answer;
    if (index >= number("count") || index >= GPUS) return INVALID_ARGUMENT;
    device asked = {(int)index, NO_SLOT, session};
    answer = (int)of(&asked, "handle");
    return answer ? answer : hand_out((int)index, NO_SLOT, into);
}

int nvmlDeviceGetUUID(device *which, char *into, unsigned length) {
    int answer = refused_on(which, __func__, "uuid_code");
    return answer ? answer : text_of(value(key_of(which, "uuid")), into, length);
}

int nvmlDeviceGetName(device *which, char *into, unsigned length) {
    int answer = refused_on(which, __func__, "name_code");
    return answer ? answer : text_of(value(key_of(which, "name")), into, length);
}

int nvmlDeviceGetMigMode(device *which, unsigned *current, unsigned *pending) {
    int answer = refused_on(which, __func__, "mig_code");
    if (!answer) *current = *pending = (unsigned)of(which, "mig");
    return answer;
}

int nvmlDeviceGetMaxMigDeviceCount(device *which, unsigned *count) {
    int answer = refused_on(which, __func__, NULL);
    if (!answer) *count = (unsigned)of(which, "slots");
    return answer;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *which, unsigned slot, device **into) {
    int answer = refused_on(which, __func__, NULL);
    if (answer) return answer;
    if (slot >= of(which, "slots") || slot >= SLOTS) return INVALID_ARGUMENT;
    device asked = {which->gpu, (int)slot, session};
    if (!value(key_of(&asked, "uuid"))) return NOT_FOUND;
    return hand_out(which->gpu, (int)slot, into);
}

int nvmlDeviceGetAttributes_v2(device *which, attributes *into) {
    int answer = refused_on(which, __func__, "attributes");
    if (answer) return answer;
    memset(into, 0, sizeof *into);
    into->gpu_slices = (unsigned)of(which, "g");
    into->compute_slices = (unsigned)of(which, "c");
    into->memory_mib = of(which, "memory_mib");
    return 0;
}

int nvmlDeviceGetMemoryInfo(device *which, memory_v1 *into) {
    int answer = refused_on(which, __func__, "memory_v1");
    if (answer) return answer;
    into->total = of(which, "total");
    into->free = of(which, "free");
    into->used = into->total - into->free;
    return 0;
}

#ifndef WITHOUT_MEMORY_V2
int nvmlDeviceGetMemoryInfo_v2(device *which, memory_v2 *into) {
    int answer = refused_on(which, __func__, "memory_v2");
    if (answer) return answer;
    if (into->version != (sizeof *into | 2u << 24)) return VERSION_MISMATCH;
    into->total = of(which, "total");
    into->free = of(which, "free");
    into->reserved = of(which, "reserved");
    into->used = into->total - into->free - into->reserved;
    return 0;
}
#endif

static int list_processes(device *which, unsigned *count, process *into, const char *call) {
    int answer = refused_on(which, call, "processes");
    if (answer) return answer;
    const char *at = value(key_of(which, "procs"));
    unsigned found = 0, room = *count;
    while (at && *at) {
        char *end;
        process listed = {(unsigned)strtoul(at, &end, 10), ~0ull, ~0u, ~0u};
        if (end[1] != 'n') listed.bytes = strtoull(end + 1, NULL, 10);
        if (into && found < room) into[found] = listed;
        found++;
        at = strchr(at, ',');
        if (at) at++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : 0;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device *which, unsigned *count, process *into) {
    return list_processes(which, count, into, __func__);
}

#ifndef WITHOUT_PROCESSES_V3
int nvmlDeviceGetComputeRunningProcesses_v3(device *which, unsigned *count, process *into) {
    return list_processes(which, count, into, __func__);
}
#endif
