/* Many threads, and every kind of futex that C libraries, Go and JVMs use. */
#include "check.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>

#define THREADS 512

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ready = PTHREAD_COND_INITIALIZER, go = PTHREAD_COND_INITIALIZER;
static int arrived, released, finished;

static long futex(volatile uint32_t *word, int op, uint32_t value, void *timeout, volatile uint32_t *word2, uint32_t value3) {
    return syscall(SYS_futex, word, op, value, timeout, word2, value3);
}

/* All at once in one condition variable. */
static void *crowd(void *arg) {
    (void)arg;
    pthread_mutex_lock(&mutex);
    if (++arrived == THREADS) pthread_cond_signal(&ready);
    while (!released) pthread_cond_wait(&go, &mutex);
    finished++;
    pthread_mutex_unlock(&mutex);
    return 0;
}

static pthread_mutex_t inherited;
static long counter;
static void *with_priority(void *arg) {
    (void)arg;
    for (int i = 0; i < 2000; i++) { pthread_mutex_lock(&inherited); counter++; pthread_mutex_unlock(&inherited); }
    return 0;
}

static volatile uint32_t first, second;
static volatile int woken;
static void *sleeper(void *arg) {
    (void)arg;
    while (futex(&first, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0) == -1 && errno == EINTR) {}
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return 0;
}

struct waitv { uint64_t value, address; uint32_t flags, reserved; };
static volatile uint32_t words[3];
static void *wait_for_several(void *arg) {
    struct waitv list[3];
    for (int i = 0; i < 3; i++) list[i] = (struct waitv){0, (uintptr_t)&words[i], 2 | 128, 0};
    long index = syscall(449, list, 3, 0, 0, 0);
    *(long *)arg = index;
    return 0;
}

int main(void) {
    static pthread_t threads[THREADS];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], &small, crowd, 0) == 0);
    pthread_mutex_lock(&mutex);
    while (arrived < THREADS) pthread_cond_wait(&ready, &mutex);
    released = 1;
    pthread_cond_broadcast(&go);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
    CHECK(finished == THREADS);

    /* Priority inheritance */
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    CHECK(pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT) == 0);
    CHECK(pthread_mutex_init(&inherited, &kind) == 0);
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], 0, with_priority, 0);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], 0);
    CHECK(counter == 16000);
    volatile uint32_t pi = 0;
    CHECK(futex(&pi, FUTEX_LOCK_PI_PRIVATE, 0, 0, 0, 0) == 0 && pi == (uint32_t)syscall(SYS_gettid));
    CHECK(futex(&pi, FUTEX_LOCK_PI_PRIVATE, 0, 0, 0, 0) == -1 && errno == EDEADLK);
    CHECK(futex(&pi, FUTEX_UNLOCK_PI_PRIVATE, 0, 0, 0, 0) == 0 && pi == 0);
    CHECK(futex(&pi, FUTEX_UNLOCK_PI_PRIVATE, 0, 0, 0, 0) == -1 && errno == EPERM);

    /* Requeue: one wakes, the others move to another word */
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, sleeper, 0);
    long moved = 0, up = 0;
    CHECK(futex(&first, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)8, &second, 1) == -1 && errno == EAGAIN);
    while (up + moved < 4) {
        long n = futex(&first, FUTEX_CMP_REQUEUE_PRIVATE, up ? 0 : 1, (void *)8, &second, 0);
        CHECK(n >= 0);
        if (n > 0 && !up) { up = 1; moved += n - 1; } else moved += n;
        sched_yield();
    }
    CHECK(moved == 3);
    CHECK(futex(&first, FUTEX_WAKE_PRIVATE, 9, 0, 0, 0) == 0);
    CHECK(futex(&second, FUTEX_WAKE_PRIVATE, 2, 0, 0, 0) == 2);
    CHECK(futex(&second, FUTEX_WAKE_PRIVATE, 9, 0, 0, 0) == 1);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    CHECK(woken == 4);
    /* FUTEX_WAKE_OP: adds 5 to the second word */
    second = 0;
    CHECK(futex(&first, FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &second, FUTEX_OP(FUTEX_OP_ADD, 5, FUTEX_OP_CMP_EQ, 0)) == 0 && second == 5);
    struct timespec soon = {0, 1000000};
    CHECK(futex(&first, FUTEX_WAIT_BITSET_PRIVATE, 0, &soon, 0, 1) == -1 && errno == ETIMEDOUT);

    /* futex_waitv */
    long index = -1;
    pthread_create(&threads[0], 0, wait_for_several, &index);
    while (futex(&words[2], FUTEX_WAKE_PRIVATE, 1, 0, 0, 0) == 0) sched_yield();
    pthread_join(threads[0], 0);
    CHECK(index == 2);

    /* Between processes: a robust mutex whose owner dies, a condition variable */
    struct { pthread_mutex_t mutex; pthread_cond_t cond; volatile int flag; } *shared;
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->mutex, &kind);
    pthread_condattr_t cond;
    pthread_condattr_init(&cond);
    pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->cond, &cond);
    pid_t pid = fork();
    if (pid == 0) { pthread_mutex_lock(&shared->mutex); shared->flag = 1; raise(SIGKILL); }
    while (!shared->flag) usleep(1000);
    CHECK(pthread_mutex_lock(&shared->mutex) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(&shared->mutex) == 0 && pthread_mutex_unlock(&shared->mutex) == 0);
    waitpid(pid, 0, 0);
    pid = fork();
    if (pid == 0) {
        pthread_mutex_lock(&shared->mutex);
        shared->flag = 2;
        pthread_cond_signal(&shared->cond);
        while (shared->flag != 3) pthread_cond_wait(&shared->cond, &shared->mutex);
        pthread_mutex_unlock(&shared->mutex);
        _exit(9);
    }
    CHECK(pthread_mutex_lock(&shared->mutex) == 0);
    while (shared->flag != 2) pthread_cond_wait(&shared->cond, &shared->mutex);
    shared->flag = 3;
    pthread_cond_signal(&shared->cond);
    pthread_mutex_unlock(&shared->mutex);
    int status;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
    return finish("futexes");
}
