/* A library for LD_PRELOAD that lets user-mode Linux 6.1 run on processors whose registers take more room than it has
 * for them (2696 bytes; AMX alone is 8 KiB). Linux takes them back only as a whole ("xstateregs_set"), so that such a
 * kernel ends with "ptrace set fp regs failed, errno = 14". What it does not know is left out, and given back empty.
 * Nor does it know that somebody may stop and continue its processes: it would take that for a crash of the guest's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { GET = 0x4204, SET = 0x4205, ALL_REGISTERS = 0x202, MOST = 1 << 16 };
enum { CONTINUE = 7, STEP = 9, CALL = 24, EMULATE = 31, EMULATE_STEP = 32 };
enum { HEADER = 512, KNOWN = 0x2ff }; /* which components are there: up to PKRU */

static int resumed; /* how the process that is waited for next was */
static pid_t resumed_process;

long ptrace(int request, ...) {
    static long (*next)(int, ...);
    static char whole[MOST];
    static size_t size = MOST;
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *kind = va_arg(rest, void *), *data = va_arg(rest, void *);
    va_end(rest);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "ptrace");
    if (request == CONTINUE || request == STEP || request == CALL || request == EMULATE || request == EMULATE_STEP) {
        resumed = request;
        resumed_process = pid;
    }
    if ((request != GET && request != SET) || (long)kind != ALL_REGISTERS) return next(request, pid, kind, data);
    struct iovec *given = data, all = {whole, request == GET ? MOST : size};
    if (request == SET) {
        memset(whole, 0, sizeof whole);
        memcpy(whole, given->iov_base, given->iov_len);
        *(uint64_t *)(whole + HEADER) &= KNOWN;
    }
    long result = next(request, pid, kind, &all);
    if (request == GET && result == 0) {
        size = all.iov_len;
        if (given->iov_len > size) given->iov_len = size;
        memcpy(given->iov_base, whole, given->iov_len);
    }
    return result;
}

pid_t waitpid(pid_t pid, int *status, int options) {
    static pid_t (*next)(pid_t, int *, int);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "waitpid");
    for (;;) {
        pid_t found = next(pid, status, options);
        if (found <= 0 || found != resumed_process || !status || !WIFSTOPPED(*status)) return found;
        if (WSTOPSIG(*status) != SIGSTOP && WSTOPSIG(*status) != SIGCONT) return found;
        if (ptrace(resumed, found, (void *)0, (void *)0)) return found;
    }
}
