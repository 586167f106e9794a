/* Tests of Linux behaviour: they pass natively and in an enclave, so they test themselves. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failures;

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            printf("FAIL %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
            fflush(stdout);                                                           \
            failures++;                                                               \
        }                                                                             \
    } while (0)

static inline int finish(const char *name) {
    printf("%s: %s\n", name, failures ? "FAILED" : "ok");
    return failures != 0;
}

static inline int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Whether this CPU has a feature, by its name in /proc/cpuinfo; said where not. */
static inline int has_feature(const char *name) {
    char line[8192], wanted[64];
    FILE *info = fopen("/proc/cpuinfo", "r");
    int found = 0;
    snprintf(wanted, sizeof wanted, " %s ", name);
    while (info && !found && fgets(line, sizeof line, info)) {
        line[strcspn(line, "\n")] = ' ';
        found = strncmp(line, "flags", 5) == 0 && strstr(line, wanted) != 0;
    }
    if (info) fclose(info);
    if (!found) printf("skipped: /proc/cpuinfo has no %s\n", name);
    return found;
}

/* Runs a part in a process of its own; the wait status. */
static inline int apart(void (*part)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        failures = 0;
        part();
        fflush(stdout);
        _exit(failures != 0);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return status;
}
