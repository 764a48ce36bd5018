/*
 * fakenvml.c - a small stand-in for libnvidia-ml.so.1, for tests only.
 *
 * Written from the public NVML API documentation (function names, struct
 * layouts, return codes).  Not derived from any NVIDIA or third-party code.
 *
 * Build:  gcc -shared -fPIC -O1 -Wall -Wl,-soname,libnvidia-ml.so.1 \
 *             -o libnvidia-ml.so.1 fakenvml.c
 * Use:    LD_LIBRARY_PATH=<dir> FAKENVML_CONFIG=<file.ini> python ...
 *
 * The INI file (sections, key = value, '#' or ';' comments):
 *   [system]            driver_version, nvml_version, cuda_version (13000),
 *                       error.<function> = <nvml code>   (for system calls)
 *   [gpu N]             name, uuid, device_id (0x233010DE), subsystem_id,
 *                       bus_id (00000000:1A:00.0), mem_total, mem_reserved,
 *                       mem_used (bytes; K/M/G suffix = KiB/MiB/GiB),
 *                       cc (9.0), arch, brand, util_gpu, util_mem,
 *                       mig (0/1; absent = not supported), virt, minor,
 *                       board_part, addressing (0 none,1 hmm,2 ats),
 *                       error.<function> = <nvml code>
 *   [mig N.M]           a MIG device of gpu N: name, uuid, mem_total, mem_used,
 *                       slices_gi, slices_ci, sm, gi, ci, error.<function>
 * error.* makes that call fail with the code: 3 not supported, 4 no
 * permission, 6 not found, 9 driver not loaded, 13 function not found,
 * 15 GPU lost, 17 operating system, 18 version mismatch, 27 not ready,
 * 999 unknown.  Two more: -1 hangs for ever, -2 crashes the process.
 * name may hold \xHH escapes, to try names that are not valid UTF-8.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int ret_t;
enum { OK = 0, E_UNINIT = 1, E_ARG = 2, E_NOSUP = 3, E_NOTFOUND = 6, E_SIZE = 7, E_VERSION = 25 };

#define MAXDEV 32
#define MAXMIG 16
#define MAXERR 24
#define API __attribute__((visibility("default")))

struct err { char fn[64]; int code; };
struct dev {
    int used, is_mig, index, parent;
    char name[96], uuid[96], bus_id[32], board[80];
    u32 device_id, subsystem_id, minor;
    u64 total, reserved, usedmem;
    int cc_major, cc_minor, arch, brand, util_gpu, util_mem, mig, virt, addressing;
    int gi, ci, slices_gi, slices_ci, sm;
    struct err errs[MAXERR]; int nerr;
};
static struct { char driver[80], nvml[80]; int cuda; struct err errs[MAXERR]; int nerr; } sys;
static struct dev devs[MAXDEV];
static struct dev migs[MAXDEV][MAXMIG];
static int refs, loaded;

static u64 num(const char *s) {
    char *e; double v;
    if (s[0] == '0' && (s[1] == 'x' || s[1] == 'X')) return strtoull(s, 0, 16);
    v = strtod(s, &e);
    switch (toupper((unsigned char)*e)) {
    case 'K': return (u64)(v * 1024); case 'M': return (u64)(v * 1048576.0);
    case 'G': return (u64)(v * 1073741824.0); default: return strtoull(s, 0, 10);
    }
}
static void cpy(char *d, const char *s, size_t n) {
    size_t i = 0;
    while (*s && i + 1 < n) {
        if (s[0] == '\\' && s[1] == 'x' && isxdigit((unsigned char)s[2]) && isxdigit((unsigned char)s[3])) {
            char h[3] = { s[2], s[3], 0 }; d[i++] = (char)strtoul(h, 0, 16); s += 4;
        } else d[i++] = *s++;
    }
    d[i] = 0;
}
static void add_err(struct err *a, int *n, const char *fn, const char *v) {
    if (*n < MAXERR) { cpy(a[*n].fn, fn, 64); a[*n].code = atoi(v); ++*n; }
}
static int find_err(const struct err *a, int n, const char *fn) {
    for (int i = 0; i < n; i++) if (!strcmp(a[i].fn, fn)) {
        while (a[i].code == -1) pause();
        if (a[i].code == -2) abort();
        return a[i].code;
    }
    return OK;
}
static void set_dev(struct dev *d, const char *k, const char *v) {
    if (!strncmp(k, "error.", 6)) add_err(d->errs, &d->nerr, k + 6, v);
    else if (!strcmp(k, "name")) cpy(d->name, v, sizeof d->name);
    else if (!strcmp(k, "uuid")) cpy(d->uuid, v, sizeof d->uuid);
    else if (!strcmp(k, "bus_id")) cpy(d->bus_id, v, sizeof d->bus_id);
    else if (!strcmp(k, "board_part")) cpy(d->board, v, sizeof d->board);
    else if (!strcmp(k, "device_id")) d->device_id = (u32)num(v);
    else if (!strcmp(k, "subsystem_id")) d->subsystem_id = (u32)num(v);
    else if (!strcmp(k, "mem_total")) d->total = num(v);
    else if (!strcmp(k, "mem_reserved")) d->reserved = num(v);
    else if (!strcmp(k, "mem_used")) d->usedmem = num(v);
    else if (!strcmp(k, "cc")) sscanf(v, "%d.%d", &d->cc_major, &d->cc_minor);
    else if (!strcmp(k, "arch")) d->arch = atoi(v);
    else if (!strcmp(k, "brand")) d->brand = atoi(v);
    else if (!strcmp(k, "util_gpu")) d->util_gpu = atoi(v);
    else if (!strcmp(k, "util_mem")) d->util_mem = atoi(v);
    else if (!strcmp(k, "mig")) d->mig = atoi(v);
    else if (!strcmp(k, "virt")) d->virt = atoi(v);
    else if (!strcmp(k, "minor")) d->minor = (u32)atoi(v);
    else if (!strcmp(k, "addressing")) d->addressing = atoi(v);
    else if (!strcmp(k, "gi")) d->gi = atoi(v);
    else if (!strcmp(k, "ci")) d->ci = atoi(v);
    else if (!strcmp(k, "slices_gi")) d->slices_gi = atoi(v);
    else if (!strcmp(k, "slices_ci")) d->slices_ci = atoi(v);
    else if (!strcmp(k, "sm")) d->sm = atoi(v);
    else fprintf(stderr, "fakenvml: unknown key '%s'\n", k);
}
static char *trim(char *s) {
    while (isspace((unsigned char)*s)) s++;
    char *e = s + strlen(s);
    while (e > s && isspace((unsigned char)e[-1])) *--e = 0;
    return s;
}
static void load(void) {
    if (loaded) return;
    loaded = 1;
    strcpy(sys.driver, "580.105.08"); strcpy(sys.nvml, "13.580.105.08"); sys.cuda = 13000;
    const char *p = getenv("FAKENVML_CONFIG");
    FILE *f = p ? fopen(p, "r") : NULL;
    if (!f) { if (p) perror(p); return; }
    char line[512]; struct dev *cur = NULL; int in_sys = 0, a, b;
    while (fgets(line, sizeof line, f)) {
        char *s = trim(line);
        if (!*s || *s == '#' || *s == ';') continue;
        if (*s == '[') {
            cur = NULL; in_sys = 0;
            if (!strncmp(s, "[system]", 8)) in_sys = 1;
            else if (sscanf(s, "[gpu %d]", &a) == 1 && a >= 0 && a < MAXDEV) {
                cur = &devs[a]; memset(cur, 0, sizeof *cur);
                cur->used = 1; cur->index = a; cur->minor = (u32)a; cur->mig = -1;
                cur->brand = 14; cur->arch = -1; cur->addressing = -1;
            } else if (sscanf(s, "[mig %d.%d]", &a, &b) == 2 && a >= 0 && a < MAXDEV && b >= 0 && b < MAXMIG) {
                cur = &migs[a][b]; memset(cur, 0, sizeof *cur);
                cur->used = cur->is_mig = 1; cur->index = b; cur->parent = a; cur->mig = -1; cur->slices_gi = cur->slices_ci = 1;
            } else fprintf(stderr, "fakenvml: bad section %s\n", s);
            continue;
        }
        char *eq = strchr(s, '=');
        if (!eq) continue;
        *eq = 0; char *k = trim(s), *v = trim(eq + 1);
        if (in_sys) {
            if (!strncmp(k, "error.", 6)) add_err(sys.errs, &sys.nerr, k + 6, v);
            else if (!strcmp(k, "driver_version")) cpy(sys.driver, v, 80);
            else if (!strcmp(k, "nvml_version")) cpy(sys.nvml, v, 80);
            else if (!strcmp(k, "cuda_version")) sys.cuda = atoi(v);
        } else if (cur) set_dev(cur, k, v);
    }
    fclose(f);
}
static ret_t put(char *out, u32 n, const char *s) {
    if (!out) return E_ARG;
    if (strlen(s) + 1 > n) return E_SIZE;
    strcpy(out, s); return OK;
}
#define SYS(fn) do { load(); int e_ = find_err(sys.errs, sys.nerr, fn); if (e_) return e_; if (!refs) return E_UNINIT; } while (0)
#define DEV(fn) do { if (!refs) return E_UNINIT; if (!d || !d->used) return E_ARG; int e_ = find_err(d->errs, d->nerr, fn); if (e_) return e_; } while (0)
#define PAR(d) ((d)->is_mig ? &devs[(d)->parent] : (d))

API ret_t nvmlInitWithFlags(u32 flags) { (void)flags; load(); int e = find_err(sys.errs, sys.nerr, "nvmlInit"); if (e) return e; refs++; return OK; }
API ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API ret_t nvmlInit(void) { return nvmlInitWithFlags(0); }
API ret_t nvmlShutdown(void) { if (!refs) return E_UNINIT; refs--; return OK; }
API const char *nvmlErrorString(ret_t r) {
    static char b[32];
    switch (r) { case 0: return "Success"; case 3: return "Not Supported"; case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded"; case 15: return "GPU is lost"; case 18: return "Driver/library version mismatch";
    case 999: return "Unknown Error"; } snprintf(b, sizeof b, "error %d", r); return b;
}
API ret_t nvmlSystemGetDriverVersion(char *v, u32 n) { SYS("nvmlSystemGetDriverVersion"); return put(v, n, sys.driver); }
API ret_t nvmlSystemGetNVMLVersion(char *v, u32 n) { load(); int e = find_err(sys.errs, sys.nerr, "nvmlSystemGetNVMLVersion"); return e ? e : put(v, n, sys.nvml); }
API ret_t nvmlSystemGetCudaDriverVersion(int *v) { SYS("nvmlSystemGetCudaDriverVersion"); *v = sys.cuda; return OK; }
API ret_t nvmlSystemGetCudaDriverVersion_v2(int *v) { SYS("nvmlSystemGetCudaDriverVersion_v2"); *v = sys.cuda; return OK; }
API ret_t nvmlDeviceGetCount_v2(u32 *n) { SYS("nvmlDeviceGetCount_v2"); u32 c = 0; while (c < MAXDEV && devs[c].used) c++; *n = c; return OK; }
API ret_t nvmlDeviceGetHandleByIndex_v2(u32 i, struct dev **out) {
    if (!refs) return E_UNINIT;
    if (i >= MAXDEV || !devs[i].used || !out) return E_ARG;
    int e = find_err(devs[i].errs, devs[i].nerr, "nvmlDeviceGetHandleByIndex_v2"); if (e) return e;
    *out = &devs[i]; return OK;
}
API ret_t nvmlDeviceGetHandleByUUID(const char *u, struct dev **out) {
    if (!refs) return E_UNINIT;
    for (int i = 0; i < MAXDEV; i++) {
        if (devs[i].used && !strcmp(devs[i].uuid, u)) { *out = &devs[i]; return OK; }
        for (int j = 0; j < MAXMIG; j++) if (migs[i][j].used && !strcmp(migs[i][j].uuid, u)) { *out = &migs[i][j]; return OK; }
    }
    return E_NOTFOUND;
}
API ret_t nvmlDeviceGetHandleByPciBusId_v2(const char *b, struct dev **out) {
    if (!refs) return E_UNINIT;
    for (int i = 0; i < MAXDEV; i++) if (devs[i].used) {
        size_t l = strlen(devs[i].bus_id), m = strlen(b);
        if (l >= m && !strcasecmp(devs[i].bus_id + l - m, b)) { *out = &devs[i]; return OK; }
    }
    return E_NOTFOUND;
}
API ret_t nvmlDeviceGetIndex(struct dev *d, u32 *i) { DEV("nvmlDeviceGetIndex"); *i = (u32)d->index; return OK; }
API ret_t nvmlDeviceGetMinorNumber(struct dev *d, u32 *i) { DEV("nvmlDeviceGetMinorNumber"); *i = d->minor; return OK; }
API ret_t nvmlDeviceGetName(struct dev *d, char *s, u32 n) { DEV("nvmlDeviceGetName"); return put(s, n, d->name); }
API ret_t nvmlDeviceGetUUID(struct dev *d, char *s, u32 n) { DEV("nvmlDeviceGetUUID"); return put(s, n, d->uuid); }
API ret_t nvmlDeviceGetBrand(struct dev *d, int *b) { DEV("nvmlDeviceGetBrand"); *b = PAR(d)->brand; return OK; }
API ret_t nvmlDeviceGetArchitecture(struct dev *d, u32 *a) {
    DEV("nvmlDeviceGetArchitecture"); struct dev *p = PAR(d);
    if (p->arch >= 0) { *a = (u32)p->arch; return OK; }
    int m = p->cc_major, x = p->cc_minor;
    *a = m == 7 ? (x >= 5 ? 6 : 5) : m == 8 ? (x == 9 ? 8 : 7) : m == 9 ? 9 : m >= 10 ? 10 : 0xffffffffu; return OK;
}
API ret_t nvmlDeviceGetBoardPartNumber(struct dev *d, char *s, u32 n) { DEV("nvmlDeviceGetBoardPartNumber"); if (!d->board[0]) return E_NOSUP; return put(s, n, d->board); }
struct pci { char legacy[16]; u32 domain, bus, device, id, sub; char busid[32]; };
API ret_t nvmlDeviceGetPciInfo_v3(struct dev *d, struct pci *p) {
    DEV("nvmlDeviceGetPciInfo_v3"); struct dev *q = PAR(d); u32 dom = 0, bus = 0, dv = 0;
    memset(p, 0, sizeof *p);
    sscanf(q->bus_id, "%x:%x:%x", &dom, &bus, &dv);
    p->domain = dom; p->bus = bus; p->device = dv; p->id = q->device_id; p->sub = q->subsystem_id;
    snprintf(p->legacy, sizeof p->legacy, "%04X:%02X:%02X.0", dom & 0xffff, bus & 0xff, dv & 0x1f);
    snprintf(p->busid, sizeof p->busid, "%08X:%02X:%02X.0", dom, bus & 0xff, dv & 0x1f);
    return OK;
}
struct mem1 { u64 total, free, used; };
struct mem2 { u32 version; u64 total, reserved, free, used; };
API ret_t nvmlDeviceGetMemoryInfo(struct dev *d, struct mem1 *m) {
    DEV("nvmlDeviceGetMemoryInfo");
    m->total = d->total; m->used = d->usedmem + d->reserved; m->free = d->total - m->used; return OK;   /* v1 counts reserved as used */
}
API ret_t nvmlDeviceGetMemoryInfo_v2(struct dev *d, struct mem2 *m) {
    DEV("nvmlDeviceGetMemoryInfo_v2");
    if (m->version != (sizeof *m | (2u << 24))) return E_VERSION;
    m->total = d->total; m->reserved = d->reserved; m->used = d->usedmem; m->free = d->total - d->reserved - d->usedmem; return OK;
}
struct util { u32 gpu, memory; };
API ret_t nvmlDeviceGetUtilizationRates(struct dev *d, struct util *u) {
    DEV("nvmlDeviceGetUtilizationRates"); if (d->is_mig || d->mig == 1) return E_NOSUP;
    u->gpu = (u32)d->util_gpu; u->memory = (u32)d->util_mem; return OK;
}
API ret_t nvmlDeviceGetCudaComputeCapability(struct dev *d, int *a, int *b) { DEV("nvmlDeviceGetCudaComputeCapability"); struct dev *p = PAR(d); *a = p->cc_major; *b = p->cc_minor; return OK; }
API ret_t nvmlDeviceGetMigMode(struct dev *d, u32 *c, u32 *p) { DEV("nvmlDeviceGetMigMode"); if (d->mig < 0) return E_NOSUP; *c = *p = (u32)d->mig; return OK; }
API ret_t nvmlDeviceGetMaxMigDeviceCount(struct dev *d, u32 *n) { DEV("nvmlDeviceGetMaxMigDeviceCount"); *n = d->mig == 1 ? 7 : 0; return OK; }
API ret_t nvmlDeviceGetMigDeviceHandleByIndex(struct dev *d, u32 i, struct dev **out) {
    DEV("nvmlDeviceGetMigDeviceHandleByIndex"); if (d->is_mig || d->mig < 0) return E_NOSUP;
    if (i >= MAXMIG) return E_ARG;
    if (!migs[d->index][i].used) return E_NOTFOUND;
    *out = &migs[d->index][i]; return OK;
}
API ret_t nvmlDeviceIsMigDeviceHandle(struct dev *d, u32 *m) { DEV("nvmlDeviceIsMigDeviceHandle"); *m = (u32)d->is_mig; return OK; }
API ret_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct dev *d, struct dev **out) { DEV("nvmlDeviceGetDeviceHandleFromMigDeviceHandle"); if (!d->is_mig) return E_ARG; *out = &devs[d->parent]; return OK; }
struct attr { u32 sm, ce, dec, enc, jpg, ofa, gi, ci; u64 mb; };
API ret_t nvmlDeviceGetAttributes_v2(struct dev *d, struct attr *a) {
    DEV("nvmlDeviceGetAttributes_v2"); if (!d->is_mig) return E_NOSUP; memset(a, 0, sizeof *a);
    a->sm = (u32)d->sm; a->gi = (u32)d->slices_gi; a->ci = (u32)d->slices_ci; a->mb = d->total >> 20; return OK;
}
API ret_t nvmlDeviceGetGpuInstanceId(struct dev *d, u32 *i) { DEV("nvmlDeviceGetGpuInstanceId"); if (!d->is_mig) return E_NOSUP; *i = (u32)d->gi; return OK; }
API ret_t nvmlDeviceGetComputeInstanceId(struct dev *d, u32 *i) { DEV("nvmlDeviceGetComputeInstanceId"); if (!d->is_mig) return E_NOSUP; *i = (u32)d->ci; return OK; }
API ret_t nvmlDeviceGetVirtualizationMode(struct dev *d, u32 *v) { DEV("nvmlDeviceGetVirtualizationMode"); *v = (u32)d->virt; return OK; }
struct amode { u32 version, value; };
API ret_t nvmlDeviceGetAddressingMode(struct dev *d, struct amode *m) { DEV("nvmlDeviceGetAddressingMode"); if (d->addressing < 0) return E_NOSUP; m->value = (u32)d->addressing; return OK; }
API ret_t nvmlDeviceGetComputeRunningProcesses_v3(struct dev *d, u32 *n, void *p) { DEV("nvmlDeviceGetComputeRunningProcesses_v3"); (void)p; *n = 0; return OK; }
API ret_t nvmlDeviceGetGraphicsRunningProcesses_v3(struct dev *d, u32 *n, void *p) { DEV("nvmlDeviceGetGraphicsRunningProcesses_v3"); (void)p; *n = 0; return OK; }
