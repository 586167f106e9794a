/* What a user without privileges may do: see itself in /proc, whose files belong to it; and may not:
 * put a filter before its calls that a set-user-ID program would keep, adjust the clock. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timex.h>

#define NOBODY 65534

static void sees_itself(void) {
    static const char *files[] = {"environ", "auxv", "mem", "maps", "io", "status", "cmdline"};
    char path[64], byte;
    struct stat status;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "/proc/self/%s", files[i]);
        CHECK(stat(path, &status) == 0 && status.st_uid == NOBODY);
        int file = open(path, O_RDONLY);
        CHECK(file >= 0);
        CHECK(i == 2 || read(file, &byte, 1) >= 0);
        close(file);
        CHECK(access(path, R_OK) == 0);
    }
    DIR *directory = opendir("/proc/self/fd");
    int entries = 0;
    CHECK(directory != 0);
    while (directory && readdir(directory)) entries++;
    CHECK(entries >= 5);
    if (directory) closedir(directory);
    char word[] = "before";
    int memory = open("/proc/self/mem", O_RDWR);
    CHECK(memory >= 0 && pwrite(memory, "after", 6, (off_t)(uintptr_t)word) == 6);
    CHECK(strcmp(word, "after") == 0);
    CHECK(lseek(memory, (off_t)(uintptr_t)word, SEEK_SET) == (off_t)(uintptr_t)word);
    CHECK(write(memory, "A", 1) == 1 && read(memory, &byte, 1) == 1 && byte == 'f');
    CHECK(strcmp(word, "After") == 0);
    CHECK(pwrite(memory, "x", 1, 8) == -1 && errno == EIO);
    close(memory);
    /* Owned by this user, but no file system for it to change. */
    CHECK(chmod("/proc/self/environ", 0644) == -1);
    CHECK(unlink("/proc/self/environ") == -1);
    /* Another user's. */
    CHECK(open("/proc/1/environ", O_RDONLY) == -1 && errno == EACCES);
    CHECK(opendir("/proc/1/fd") == 0 && errno == EACCES);
}

static void may_not_filter(void) {
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog filter = {.len = 1, .filter = allow};
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == -1 && errno == EACCES);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}

static void may_not_adjust_the_clock(void) {
    struct timeval left = {.tv_sec = 7}, step = {.tv_usec = 1};
    struct timex change = {.modes = 0x8000};
    CHECK(adjtime(0, &left) == 0 && left.tv_sec != 7);
    CHECK(adjtime(&step, 0) == -1 && errno == EPERM);
    CHECK(adjtimex(&change) == -1 && errno == EINVAL);
    change.modes = ADJ_TICK;
    CHECK(adjtimex(&change) == -1 && errno == EPERM);
}

static void as_nobody(void) {
    CHECK(setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
    /* A change of user makes a process one that others may not look into. */
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
    sees_itself();
    may_not_adjust_the_clock();
    may_not_filter();
}

int main(void) {
    CHECK(apart(as_nobody) == 0);
    return finish("unprivileged");
}
