/* Which pages are in memory: mincore after maps, locks and faults, segments' pages in their lists; and
 * which mappings are one: what a child maps beside its parent's is not. What cachestat and PROCMAP_QUERY say. */
#include "check.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>

enum { PAGES = 8 };

static int resident(char *at) {
    unsigned char vector[PAGES] = {0};
    int sum = 0;
    CHECK(mincore(at, PAGES * 4096, vector) == 0);
    for (int i = 0; i < PAGES; i++) sum += vector[i] & 1;
    return sum;
}

static char *map(int flags) {
    char *at = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static void touched(int flags) {
    char *at = map(flags);
    CHECK(resident(at) == 0);
    memset(at, 1, 3 * 4096);
    CHECK(resident(at) == 3);
    CHECK(mlock(at + 4 * 4096, 4096) == 0 && resident(at) == 4);
    CHECK(munlock(at + 4 * 4096, 4096) == 0 && resident(at) == 4);
    CHECK(mlock2(at, PAGES * 4096, MLOCK_ONFAULT) == 0 && resident(at) == 4);
    pid_t child = fork();
    if (child == 0) {
        at[5 * 4096] = 1;
        _exit(resident(at));
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 5 << 8);
    munmap(at, PAGES * 4096);
}

/* The end of the mapping that starts at an address. */
static char *end_of(char *start) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], *from, *to, *found = 0;
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%p-%p", (void **)&from, (void **)&to) == 2 && from == start) found = to;
    fclose(maps);
    return found;
}

static void neighbours(void) {
    char *all = mmap(0, 9 * 4096, PROT_NONE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0), *at = all + 3 * 4096;
    CHECK(munmap(all, 9 * 4096) == 0);
    int flags = MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED;
    CHECK(mmap(at, 4096, PROT_WRITE, flags, -1, 0) == at);
    CHECK(mmap(at + 4096, 4096, PROT_WRITE, flags, -1, 0) == at + 4096);
    *at = 1;
    CHECK(end_of(at) == at + 2 * 4096);
    pid_t child = fork();
    if (child == 0) {
        CHECK(mmap(at + 2 * 4096, 4096, PROT_WRITE, flags, -1, 0) == at + 2 * 4096);
        CHECK(end_of(at) == at + 2 * 4096);
        _exit(failures);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static long listed(int wanted) {
    FILE *list = fopen("/proc/sysvipc/shm", "r");
    char line[512];
    long pages = -1;
    while (fgets(line, sizeof line, list)) {
        int id;
        long bytes;
        const char *form = "%*d %d %*o %*u %*d %*d %*d %*d %*d %*d %*d %*d %*d %*d %ld";
        if (sscanf(line, form, &id, &bytes) == 2 && id == wanted) pages = bytes / 4096;
    }
    fclose(list);
    return pages;
}

static void segments(void) {
    struct shm_info before, after;
    CHECK(shmctl(0, SHM_INFO, (struct shmid_ds *)&before) >= 0);
    int id = shmget(IPC_PRIVATE, 2 * 4096 - 100, IPC_CREAT | 0600);
    CHECK(shmctl(0, SHM_INFO, (struct shmid_ds *)&after) >= 0);
    CHECK(after.used_ids == before.used_ids + 1 && after.shm_tot == before.shm_tot + 2);
    CHECK(after.shm_rss == before.shm_rss && listed(id) == 0);
    char *at = shmat(id, 0, 0);
    at[0] = 1;
    at[4096] = 1;
    CHECK(listed(id) == 2);
    /* The only mapping is replaced: with it a removed segment goes. */
    CHECK(syscall(SYS_remap_file_pages, at, 2 * 4096, 0, 0, 0) == 0);
    CHECK(shmctl(id, IPC_RMID, 0) == 0);
    CHECK(syscall(SYS_remap_file_pages, at, 2 * 4096, 0, 0, 0) == -1 && (errno == EIDRM || errno == EINVAL));
    CHECK(listed(id) == -1 && shmdt(at) == -1 && errno == EINVAL);
}

/* cachestat (Linux 6.5): what a file has of a range. */
static void cached(void) {
    struct { uint64_t from, len; } range = {0, 6 * 4096};
    uint64_t found[5];
    int file = memfd_create("cached", 0), ends[2];
    CHECK(pwrite(file, "x", 1, 0) == 1 && pwrite(file, "yz", 2, 3 * 4096 - 1) == 2);
    int answer = syscall(451, file, &range, found, 0);
    if (answer == -1 && errno == ENOSYS) return;
    CHECK(answer == 0 && found[0] == 3 && found[3] == 0);
    range.from = 4096 + 5;
    CHECK(syscall(451, file, &range, found, 0) == 0 && found[0] == 2);
    CHECK(syscall(451, file, &range, found, 1) == -1 && errno == EINVAL);
    CHECK(syscall(451, file, 0, found, 0) == -1 && errno == EFAULT);
    CHECK(syscall(451, -1, &range, found, 0) == -1 && errno == EBADF);
    CHECK(pipe(ends) == 0 && syscall(451, ends[0], &range, found, 0) == 0 && found[0] == 0);
}

/* PROCMAP_QUERY (Linux 6.11): the same mapping as the text has. */
static void queried(void) {
    struct {
        uint64_t size, flags, address, start, end, kind, page, offset, inode;
        uint32_t major, minor, name_size, id_size;
        uint64_t name, id;
    } query = {.size = sizeof query};
    unsigned long request = 0xc0006611 | sizeof query << 16;
    char *all = mmap(0, 4 * 4096, PROT_NONE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0), *at = all + 4096, name[64] = "";
    munmap(all, 4 * 4096);
    CHECK(mmap(at, 4096, PROT_READ, MAP_ANONYMOUS | MAP_SHARED | MAP_FIXED, -1, 0) == at);
    int maps = open("/proc/self/maps", O_RDONLY);
    query.address = (uintptr_t)at + 5;
    int answer = ioctl(maps, request, &query);
    if (answer == -1 && errno == ENOTTY) return;
    CHECK(answer == 0 && query.start == (uintptr_t)at && query.end == query.start + 4096);
    CHECK(query.kind == 9 && query.page == 4096 && query.name_size == 0);
    query.flags = 2;
    CHECK(ioctl(maps, request, &query) == -1 && errno == ENOENT);
    query.flags = 0;
    query.address = (uintptr_t)at - 1;
    CHECK(ioctl(maps, request, &query) == -1 && errno == ENOENT);
    query.flags = 16;
    CHECK(ioctl(maps, request, &query) == 0 && query.start == (uintptr_t)at);
    query.flags = 0;
    query.address = (uintptr_t)name;
    query.name = (uintptr_t)name;
    query.name_size = sizeof name;
    CHECK(ioctl(maps, request, &query) == 0 && strcmp(name, "[stack]") == 0 && query.name_size == 8);
    query.name_size = 3;
    CHECK(ioctl(maps, request, &query) == -1 && errno == ENAMETOOLONG);
    query.size = 16;
    CHECK(ioctl(maps, request, &query) == -1 && errno == EINVAL);
    close(maps);
}

int main(void) {
    cached();
    queried();
    touched(MAP_PRIVATE);
    touched(MAP_SHARED);
    neighbours();
    segments();
    return finish("resident");
}
