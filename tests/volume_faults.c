/* A library for LD_PRELOAD that stands between a process and its volume. It counts the calls that change files and
 * lets chosen ones fail, hang, or end the process.
 *
 * VOLUME_FAULTS: rules, one a line: "CALLS ACTION FIRST LAST PATH". CALLS: names joined by commas, or "*". ACTION:
 * "kill" or "term" (the signal comes before the call), "hang" (for ever), or the number of an errno. FIRST and LAST:
 * which of the calls that match, counted from 1 over all threads. PATH: what the file's absolute path contains.
 * VOLUME_LOG: a file that gets a line "TIME CALL PATH" for each call, before it is made; TIME: monotonic, seconds.
 *
 * strace(1) can do the same, but counts calls for each thread by itself, so that not every call of a program with
 * threads can be named; and it needs ptrace, which containers seldom have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { RULES = 16, LINE = 2 * PATH_MAX };

struct rule {
    char calls[256], action[16], path[PATH_MAX];
    long first, last;
    atomic_long seen;
};

static struct rule rules[RULES];
static int count, log_file = -1;

__attribute__((constructor)) static void read_rules(void) {
    const char *text = getenv("VOLUME_FAULTS"), *log = getenv("VOLUME_LOG");
    while (text && *text && count < RULES) {
        struct rule *rule = &rules[count];
        int fields = sscanf(text, "%255s %15s %ld %ld %4095s", rule->calls, rule->action, &rule->first, &rule->last,
                            rule->path);
        if (fields != 5) {
            fprintf(stderr, "volume_faults: cannot read the rule: %s\n", text);
            abort();
        }
        count++;
        text = strchr(text, '\n');
        text = text ? text + 1 : NULL;
    }
    if (log) {
        int opened = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        log_file = fcntl(opened, F_DUPFD_CLOEXEC, 900); /* out of the way of what the program opens */
        syscall(SYS_close, opened);
    }
}

static int names(const char *calls, const char *call) {
    if (strcmp(calls, "*") == 0) return 1;
    size_t length = strlen(call);
    for (const char *at = calls; (at = strstr(at, call)); at += length)
        if ((at == calls || at[-1] == ',') && (at[length] == ',' || at[length] == 0)) return 1;
    return 0;
}

/* Whether the call must fail, with errno set. Does not come back where the process ends here. */
static int refused(const char *call, const char *path) {
    int code = 0, before = errno;
    if (log_file >= 0) {
        char line[LINE];
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        int length = snprintf(line, sizeof line, "%ld.%06ld %s %s\n", (long)now.tv_sec, now.tv_nsec / 1000, call, path);
        syscall(SYS_write, log_file, line, length < LINE ? length : LINE - 1);
    }
    for (int number = 0; number < count; number++) {
        struct rule *rule = &rules[number];
        if (!names(rule->calls, call) || !strstr(path, rule->path)) continue;
        long turn = atomic_fetch_add(&rule->seen, 1) + 1;
        if (turn < rule->first || turn > rule->last) continue;
        if (strcmp(rule->action, "kill") == 0) kill(getpid(), SIGKILL);
        else if (strcmp(rule->action, "term") == 0) kill(getpid(), SIGTERM);
        else if (strcmp(rule->action, "hang") == 0) for (;;) pause();
        else code = atoi(rule->action);
    }
    errno = code ? code : before;
    return code != 0;
}

static const char *of_file(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
    return path;
}

static const char *of_name(int directory, const char *name, char *path) {
    char above[PATH_MAX] = "";
    if (name[0] != '/' && directory != AT_FDCWD) of_file(directory, above);
    snprintf(path, LINE, "%s%s%s", above, above[0] ? "/" : "", name);
    return path;
}

#define WRAP(type, name, parameters, arguments, where)                    \
    type name parameters {                                                \
        static type(*next) parameters;                                    \
        char path[LINE];                                                  \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name);             \
        if (refused(#name, where)) return -1;                             \
        return next arguments;                                            \
    }

WRAP(ssize_t, write, (int file, const void *from, size_t size), (file, from, size), of_file(file, path))
WRAP(ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t at), (file, from, size, at), of_file(file, path))
WRAP(int, fsync, (int file), (file), of_file(file, path))
WRAP(int, fdatasync, (int file), (file), of_file(file, path))
WRAP(int, syncfs, (int file), (file), of_file(file, path))
WRAP(int, ftruncate64, (int file, off64_t size), (file, size), of_file(file, path))
WRAP(int, fchmod, (int file, mode_t mode), (file, mode), of_file(file, path))
WRAP(int, chmod, (const char *name, mode_t mode), (name, mode), of_name(AT_FDCWD, name, path))
WRAP(int, rename, (const char *from, const char *to), (from, to), of_name(AT_FDCWD, to, path))
WRAP(int, renameat, (int above, const char *from, int below, const char *to), (above, from, below, to), of_name(below, to, path))
WRAP(int, linkat, (int above, const char *from, int below, const char *to, int flags), (above, from, below, to, flags), of_name(below, to, path))
WRAP(int, symlinkat, (const char *to, int below, const char *name), (to, below, name), of_name(below, name, path))
WRAP(int, unlink, (const char *name), (name), of_name(AT_FDCWD, name, path))
WRAP(int, unlinkat, (int above, const char *name, int flags), (above, name, flags), of_name(above, name, path))
WRAP(int, mkdir, (const char *name, mode_t mode), (name, mode), of_name(AT_FDCWD, name, path))
WRAP(int, mkdirat, (int above, const char *name, mode_t mode), (above, name, mode), of_name(above, name, path))
WRAP(int, rmdir, (const char *name), (name), of_name(AT_FDCWD, name, path))
WRAP(int, close, (int file), (file), of_file(file, path))
