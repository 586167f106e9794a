/* Forked processes that stay: each keeps its own memory, all get on, what is shared is shared. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { CHILDREN = 6, PAGES = 64, ROUNDS = 40 };

struct shared {
    _Atomic int ready, rounds[CHILDREN], turn, go, spins;
    sem_t semaphore;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int counter, next;
};

static struct shared *shared;
static char *memory;
static long page;

static void *anonymous(size_t size, int flags) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* Fills its memory with marks of its own, again and again, and finds nobody else's. */
static void work(int me) {
    char *own = malloc(300000);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PAGES; i++) {
            char *at = memory + i * page;
            if (round > 0)
                CHECK(at[8] == (char)(me * 16 + round - 1) || i % 3 != me % 3);
            if (i % 3 == me % 3)
                at[8] = me * 16 + round;
        }
        memset(own, me + round, 300000);
        CHECK(own[123456] == (char)(me + round));
        if (round % 8 == me)
            sched_yield();
        atomic_fetch_add(&shared->rounds[me], 1);
    }
    for (int i = 0; i < PAGES; i++)
        CHECK(memory[i * page] == (char)i);
    free(own);
}

static pid_t start(void (*body)(int), int me) {
    pid_t pid = fork();
    if (pid == 0) {
        body(me);
        fflush(stdout);
        _exit(failures != 0);
    }
    CHECK(pid > 0);
    return pid;
}

static void reap(pid_t *children, int count) {
    for (int i = 0; i < count; i++) {
        int status = -1;
        CHECK(waitpid(children[i], &status, 0) == children[i]);
        CHECK(status == 0);
    }
}

static void together(void) {
    pid_t children[CHILDREN];
    for (int i = 0; i < PAGES; i++)
        memory[i * page] = i;
    for (int i = 0; i < CHILDREN; i++)
        children[i] = start(work, i);
    reap(children, CHILDREN);
    for (int i = 0; i < CHILDREN; i++)
        CHECK(shared->rounds[i] == ROUNDS);
    for (int i = 0; i < PAGES; i++)
        CHECK(memory[i * page] == (char)i && memory[i * page + 8] == 0);
}

/* All burn the processor and none ever sleeps: each must see all the others get on. */
static void burn(int me) {
    for (;;) {
        atomic_fetch_add(&shared->rounds[me], 1);
        int all = 1;
        for (int i = 0; i < CHILDREN; i++)
            all &= atomic_load(&shared->rounds[i]) > 0;
        if (all)
            return;
    }
}

static void nobody_starves(void) {
    pid_t children[CHILDREN];
    for (int i = 0; i < CHILDREN; i++)
        shared->rounds[i] = 0;
    for (int i = 0; i < CHILDREN; i++)
        children[i] = start(burn, i);
    reap(children, CHILDREN);
}

/* Each spins, with sched_yield or without, until its turn has come. */
static void spin(int me) {
    for (int round = 0; round < 4; round++) {
        while (atomic_load(&shared->turn) != round * CHILDREN + me)
            if (me % 2)
                sched_yield();
        memory[0]++;
        atomic_fetch_add(&shared->turn, 1);
    }
    CHECK(memory[0] == 4);
}

static void spinning_rotates(void) {
    pid_t children[CHILDREN];
    memory[0] = 0;
    shared->turn = 0;
    for (int i = 0; i < CHILDREN; i++)
        children[i] = start(spin, i);
    reap(children, CHILDREN);
    CHECK(memory[0] == 0);
}

/* A baton goes round by condition variable; a counter by mutex; all of it across processes. */
static void baton(int me) {
    for (int round = 0; round < 20; round++) {
        pthread_mutex_lock(&shared->mutex);
        while (shared->next % CHILDREN != me)
            pthread_cond_wait(&shared->changed, &shared->mutex);
        shared->next++;
        pthread_cond_broadcast(&shared->changed);
        pthread_mutex_unlock(&shared->mutex);
    }
    for (int i = 0; i < 500; i++) {
        pthread_mutex_lock(&shared->mutex);
        shared->counter++;
        pthread_mutex_unlock(&shared->mutex);
    }
    sem_post(&shared->semaphore);
}

static void synchronised(void) {
    pthread_mutexattr_t attribute;
    pthread_mutexattr_init(&attribute);
    pthread_mutexattr_setpshared(&attribute, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &attribute);
    pthread_condattr_t condition;
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->changed, &condition);
    sem_init(&shared->semaphore, 1, 0);
    pid_t children[CHILDREN];
    for (int i = 0; i < CHILDREN; i++)
        children[i] = start(baton, i);
    for (int i = 0; i < CHILDREN; i++)
        sem_wait(&shared->semaphore);
    reap(children, CHILDREN);
    CHECK(shared->counter == CHILDREN * 500 && shared->next == CHILDREN * 20);
}

/* Threads of several processes at once, and a grandchild. */
static void *threaded(void *argument) {
    long sum = 0;
    for (int i = 0; i < 200; i++) {
        long *number = malloc(sizeof *number);
        *number = i;
        sum += *number;
        free(number);
    }
    *(long *)argument = sum;
    return NULL;
}

static void family(int me) {
    pthread_t threads[3];
    long sums[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, threaded, &sums[i]) == 0);
    pid_t grandchild = start(work, me);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0 && sums[i] == 19900);
    reap(&grandchild, 1);
}

static void families(void) {
    pid_t children[3];
    for (int i = 0; i < PAGES; i++)
        memory[i * page] = i;
    for (int i = 0; i < 3; i++)
        children[i] = start(family, i);
    reap(children, 3);
}

/* A process changes its own niceness and CPUs; children inherit them. */
static void inherit(int me) {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1);
    CHECK(getpriority(PRIO_PROCESS, 0) == 3 + me);
}

static void scheduling(void) {
    cpu_set_t all, one;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0 && CPU_COUNT(&all) > 0);
    int first = 0;
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(sched_getaffinity(-1, sizeof one, &one) == -1 && errno == ESRCH);
    CHECK(setpriority(PRIO_PROCESS, getpid(), 3) == 0);
    pid_t child = start(inherit, 0);
    reap(&child, 1);
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
}

static void on_alarm(int signal) {
    (void)signal;
}

static unsigned char pattern(long at) {
    return at * 7 + at / 4099;
}

static void drain(int me) {
    long at = 0;
    char block[30000];
    ssize_t got;
    while ((got = read(me, block, sizeof block)) > 0)
        for (ssize_t i = 0; i < got; i++)
            if ((unsigned char)block[i] != pattern(at++))
                _exit(1);
    _exit(at == 5 << 20 ? 0 : 2);
}

/* A pipe between processes that take turns holds what it says, and keeps the order. */
static void pipes(void) {
    int ends[2];
    char *block = malloc(1 << 20);
    CHECK(pipe(ends) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    CHECK(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
    CHECK(write(ends[1], block, 1 << 20) == 65536);
    CHECK(write(ends[1], block, 1) == -1 && errno == EAGAIN);
    CHECK(fcntl(ends[1], F_GETPIPE_SZ) == 65536);
    /* One whose size was chosen keeps it: the write waits until the alarm. */
    CHECK(fcntl(ends[1], F_SETPIPE_SZ, 131072) == 131072);
    CHECK(fcntl(ends[1], F_SETFL, 0) == 0);
    struct sigaction action = {.sa_handler = on_alarm};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    alarm(1);
    CHECK(write(ends[1], block, 1 << 20) == 65536);
    CHECK(fcntl(ends[1], F_GETPIPE_SZ) == 131072);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    close(ends[0]);
    close(ends[1]);

    CHECK(pipe(ends) == 0);
    child = fork();
    if (child == 0) {
        close(ends[1]);
        drain(ends[0]);
    }
    close(ends[0]);
    for (long at = 0; at < 5 << 20; at += 1 << 20) {
        for (long i = 0; i < 1 << 20; i++)
            block[i] = pattern(at + i);
        CHECK(write(ends[1], block, 1 << 20) == 1 << 20);
    }
    close(ends[1]);
    reap(&child, 1);
    free(block);
}

/* An address in the lowest 2 GiB that both ask for without MAP_FIXED: each gets it, and its own page. */
static void low_hints(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, ends[2], back[2];
    char word = 0;
    /* A small enclave of fixed size has less than 2 GiB of addresses: one of those that there are. */
    void *wanted = mmap(NULL, 16 * page, PROT_READ, flags, -1, 0);
    CHECK(wanted != MAP_FAILED && munmap(wanted, 16 * page) == 0);
    CHECK(pipe(ends) == 0 && pipe(back) == 0);
    pid_t child = fork();
    char *at = mmap(wanted, 16 * page, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(at == wanted);
    if (child == 0) {
        CHECK(read(ends[0], &word, 1) == 1 && at[page] == 0);
        at[page] = 'c';
        CHECK(write(back[1], "x", 1) == 1 && read(ends[0], &word, 1) == 1);
        _exit(failures || at[page] != 'c');
    }
    at[page] = 'p';
    CHECK(write(ends[1], "x", 1) == 1 && read(back[0], &word, 1) == 1);
    CHECK(at[page] == 'p' && write(ends[1], "x", 1) == 1);
    reap(&child, 1);
    char *other = mmap(wanted, page, PROT_READ, flags, -1, 0);
    CHECK(other != wanted && (uintptr_t)other < 1u << 31);
    /* Perhaps beyond what there is: then elsewhere. */
    char *high = mmap((void *)0x7f000000, page, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(high != MAP_FAILED && (uintptr_t)high < 1u << 31);
    high[0] = 1;
    munmap(high, page);
    munmap(at, 16 * page);
    munmap(other, page);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    shared = anonymous(sizeof *shared, MAP_SHARED);
    memory = anonymous(PAGES * page, MAP_PRIVATE);
    together();
    nobody_starves();
    spinning_rotates();
    synchronised();
    families();
    scheduling();
    pipes();
    low_hints();
    return finish("siblings");
}
