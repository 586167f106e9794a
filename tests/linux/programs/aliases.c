/* Two views of one object: in one process, in several, at fixed addresses, and futexes through both. */
#include "check.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/shm.h>

static long page;

static int object(size_t size) {
    int fd = memfd_create("object", 0);
    CHECK(fd >= 0 && ftruncate(fd, size) == 0);
    return fd;
}

static char *view(int fd, size_t size, int protection, off_t offset) {
    char *at = mmap(NULL, size, protection, MAP_SHARED, fd, offset);
    CHECK(at != MAP_FAILED);
    return at;
}

/* Each view has its own address and protection; a write through one is seen through the other. */
static void two_views(void) {
    int fd = object(4 * page);
    char *one = view(fd, 4 * page, PROT_READ | PROT_WRITE, 0);
    char *two = view(fd, 2 * page, PROT_READ | PROT_WRITE, page);
    CHECK(one != two);
    for (int i = 0; i < 100; i++) {
        one[page + i] = i;
        CHECK(two[i] == i);
        two[page + i] = i + 1;
        CHECK(one[2 * page + i] == i + 1);
    }
    char bytes[2] = "";
    CHECK(pread(fd, bytes, 2, page + 50) == 2 && bytes[0] == 50 && bytes[1] == 51);
    CHECK(pwrite(fd, "xy", 2, page) == 2 && two[0] == 'x' && one[page + 1] == 'y');
    CHECK(munmap(two, 2 * page) == 0);
    CHECK(one[page] == 'x' && one[2 * page + 99] == 100);
    two = mremap(one, 0, page, MREMAP_MAYMOVE);
    CHECK(two != MAP_FAILED && two != one);
    two[5] = 5;
    CHECK(one[5] == 5);
    char *moved = mremap(two, page, 2 * page, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved[5] == 5 && moved[page] == 'x');
    one[6] = 6;
    CHECK(moved[6] == 6);
    munmap(moved, 2 * page);
    munmap(one, 4 * page);
    close(fd);
}

/* The ring buffer whose end continues at its start. */
static void ring(void) {
    size_t size = 2 * page;
    int fd = object(size);
    char *at = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at);
    CHECK(mmap(at + size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at + size);
    memcpy(at + size - 4, "ringbuff", 8);
    CHECK(memcmp(at + size - 4, "ring", 4) == 0 && memcmp(at, "buff", 4) == 0);
    CHECK(memcmp(at + size, "buff", 4) == 0);
    munmap(at, 2 * size);
    close(fd);
}

/* A compiler writes through one view and runs through another, without write permission there. */
static void compiler(void) {
    int fd = object(page);
    unsigned char *write = (void *)view(fd, page, PROT_READ | PROT_WRITE, 0);
    int (*run)(void) = (void *)view(fd, page, PROT_READ | PROT_EXEC, 0);
    for (int i = 0; i < 20; i++) {
        unsigned char code[] = {0xb8, (unsigned char)i, 0, 0, 0, 0xc3}; /* mov eax, i; ret */
        memcpy(write, code, sizeof code);
        CHECK(run() == i);
    }
    munmap(write, page);
    munmap((void *)run, page);
    close(fd);
}

static long futex(_Atomic unsigned *word, int operation, unsigned value, const struct timespec *limit) {
    return syscall(SYS_futex, word, operation, value, limit, NULL, 0);
}

struct pair {
    _Atomic unsigned *wait, *wake;
    int rounds;
};

static void *answer(void *argument) {
    struct pair *pair = argument;
    for (int i = 0; i < pair->rounds; i++) {
        while (atomic_load(&pair->wait[0]) <= (unsigned)i)
            futex(&pair->wait[0], FUTEX_WAIT, i, NULL);
        atomic_store(&pair->wake[1], i + 1);
        futex(&pair->wake[1], FUTEX_WAKE, 1, NULL);
    }
    return NULL;
}

static void ask(struct pair *pair) {
    for (int i = 0; i < pair->rounds; i++) {
        atomic_store(&pair->wake[0], i + 1);
        futex(&pair->wake[0], FUTEX_WAKE, 1, NULL);
        while (atomic_load(&pair->wait[1]) <= (unsigned)i)
            futex(&pair->wait[1], FUTEX_WAIT, i, NULL);
    }
}

/* Two threads, each with a view of its own, wake one another. */
static void threads(void) {
    int fd = object(page);
    _Atomic unsigned *one = (void *)view(fd, page, PROT_READ | PROT_WRITE, 0);
    _Atomic unsigned *two = (void *)view(fd, page, PROT_READ | PROT_WRITE, 0);
    struct pair here = {one, one, 200}, there = {two, two, 200};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, answer, &there) == 0);
    ask(&here);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(atomic_load(&one[1]) == 200);
    munmap(one, page);
    munmap(two, page);
    close(fd);
}

struct adder {
    _Atomic unsigned *word;
    int count;
};

static void *add(void *argument) {
    struct adder *adder = argument;
    for (int i = 0; i < adder->count; i++)
        atomic_fetch_add(adder->word, 1);
    return NULL;
}

/* Nothing is lost when both views are written to at once. */
static void race(void) {
    int fd = object(page);
    struct adder adders[4];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        adders[i].word = (void *)view(fd, page, PROT_READ | PROT_WRITE, 0);
        adders[i].count = 2000;
    }
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&thread[i], NULL, add, &adders[i]) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK(atomic_load(adders[0].word) == 8000);
    for (int i = 0; i < 4; i++)
        munmap((void *)adders[i].word, page);
    close(fd);
}

/* Parent and child at two addresses, then two processes where a third thing is at that address. */
static void processes(void) {
    int fd = object(2 * page);
    char *room = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(room, 'p', 8 * page);
    _Atomic unsigned *home = (void *)view(fd, 2 * page, PROT_READ | PROT_WRITE, 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(mmap(room + 2 * page, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
              room + 2 * page);
        struct pair pair = {(void *)(room + 2 * page), (void *)(room + 2 * page), 50};
        answer(&pair);
        room[3 * page] = 'c';
        CHECK(room[page] == 'p' && room[5 * page] == 'p');
        _exit(failures != 0);
    }
    struct pair pair = {home, home, 50};
    ask(&pair);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(((char *)home)[page] == 'c' && room[2 * page] == 'p' && room[3 * page] == 'p');
    /* The child has private memory where the parent has its view, and the other way round. */
    CHECK(mmap(room, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, page) == room);
    CHECK(room[0] == 'c');
    child = fork();
    if (child == 0) {
        CHECK(mmap(room, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
              room);
        CHECK(mmap(home, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
              home);
        room[0] = 'x';
        atomic_store(home, 77);
        ((char *)home)[page] = 'd';
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, NULL);
        CHECK(room[0] == 'x' && atomic_load(home) == 77);
        _exit(failures != 0);
    }
    for (int i = 0; i < 50 && room[0] != 'd'; i++) {
        struct timespec pause = {0, 10000000};
        nanosleep(&pause, NULL);
    }
    CHECK(room[0] == 'd' && atomic_load(home) == 50);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(room[0] == 'd' && atomic_load(home) == 50);
    munmap(home, 2 * page);
    munmap(room, 8 * page);
    close(fd);
}

/* A mapped file that grows beyond all expectation, and what is mapped of it then. */
static void growth(void) {
    int fd = object(page);
    char *small = view(fd, page, PROT_READ | PROT_WRITE, 0);
    strcpy(small, "small");
    CHECK(ftruncate(fd, 96 << 20) == 0);
    char *large = view(fd, 96 << 20, PROT_READ | PROT_WRITE, 0);
    CHECK(strcmp(large, "small") == 0);
    strcpy(large + (95 << 20), "far");
    strcpy(small, "again");
    CHECK(strcmp(large, "again") == 0);
    char bytes[4] = "";
    CHECK(pread(fd, bytes, 4, 95 << 20) == 4 && strcmp(bytes, "far") == 0);
    munmap(small, page);
    CHECK(strcmp(large, "again") == 0);
    munmap(large, 96 << 20);
    close(fd);
}

static void system_v(void) {
    int id = shmget(IPC_PRIVATE, 3 * page, IPC_CREAT | 0600);
    CHECK(id >= 0);
    char *one = shmat(id, NULL, 0), *two = shmat(id, NULL, SHM_RDONLY);
    CHECK(one != (void *)-1 && two != (void *)-1 && one != two);
    strcpy(one + page, "segment");
    CHECK(strcmp(two + page, "segment") == 0);
    char *room = mmap(NULL, 8 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(munmap(room, 8 * page) == 0);
    char *three = shmat(id, room + page, 0);
    CHECK(three == room + page && strcmp(three + page, "segment") == 0);
    struct shmid_ds status;
    CHECK(shmctl(id, IPC_STAT, &status) == 0);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    CHECK(shmdt(one) == 0 && strcmp(three + page, "segment") == 0);
    CHECK(shmdt(two) == 0 && shmdt(three) == 0);
    CHECK(shmdt(three) == -1 && errno == EINVAL);
}

static void rep_movs(char *to, const char *from, size_t count) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

/* One instruction that needs a page at two addresses at once: copies from one view to another. */
static void copies(void) {
    int fd = object(2 * page);
    char *one = view(fd, 2 * page, PROT_READ | PROT_WRITE, 0);
    char *two = view(fd, 2 * page, PROT_READ | PROT_WRITE, 0);
    memset(one, 'a', page / 2);
    rep_movs(two + page / 2, one, page / 2);
    CHECK(one[page / 2] == 'a' && one[page - 1] == 'a' && one[page] == 0);
    /* Over the end of a page, and backwards. */
    one[0] = 'b';
    rep_movs(two + page - 8, one, 16);
    CHECK(one[page - 8] == 'b' && one[page + 7] == 'a' && one[page + 8] == 0);
    const uint64_t *from = (void *)(one + 8);
    uint64_t *to = (void *)(two + 64);
    one[8] = 'c';
    __asm__ volatile("movsq" : "+D"(to), "+S"(from) : : "memory");
    CHECK(two[64] == 'c' && to == (void *)(two + 72) && from == (void *)(one + 16));
    CHECK(munmap(one, 2 * page) == 0 && munmap(two, 2 * page) == 0);
    close(fd);
}

static void compare(int fd) {
    char *one = view(fd, page, PROT_READ | PROT_WRITE, 0);
    char *two = view(fd, page, PROT_READ | PROT_WRITE, 0);
    __asm__ volatile("cmpsb" : "+D"(one), "+S"(two) : : "memory", "cc");
}

/* Any other instruction that does so: it works, or is a fault of the program; it never hangs. */
static void compares(void) {
    int fd = object(page), status;
    if (fork() == 0) {
        compare(fd);
        _exit(0);
    }
    CHECK(wait(&status) > 0 && (status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS)));
    close(fd);
}

/* remap_file_pages: other parts of a file in one mapping. */
static void remapped(void) {
    int fd = object(4 * page);
    char *all = view(fd, 4 * page, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; i < 4; i++)
        all[i * page] = '0' + i;
    CHECK(syscall(SYS_remap_file_pages, all, 2 * page, 0, 2, 0) == 0);
    CHECK(all[0] == '2' && all[page] == '3' && all[2 * page] == '2' && all[3 * page] == '3');
    all[1] = 'x';
    CHECK(all[2 * page + 1] == 'x');
    CHECK(syscall(SYS_remap_file_pages, all, page, 1, 2, 0) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_remap_file_pages, all, 0, 0, 2, 0) == -1 && errno == EINVAL);
    CHECK(munmap(all, 4 * page) == 0);
    close(fd);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    two_views();
    ring();
    compiler();
    threads();
    race();
    processes();
    growth();
    system_v();
    copies();
    compares();
    remapped();
    return finish("aliases");
}
