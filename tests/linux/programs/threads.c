#include "check.h"
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static int counter, turn;
static __thread int local = 3;

static void *adder(void *arg) {
    local += (int)(intptr_t)arg;
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
    }
    return (void *)(intptr_t)local;
}
static void *pingpong(void *arg) {
    int me = (int)(intptr_t)arg;
    for (int i = 0; i < 2000; i++) {
        pthread_mutex_lock(&mutex);
        while (turn != me) pthread_cond_wait(&cond, &mutex);
        turn = !me;
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&mutex);
    }
    return 0;
}
static void *waits(void *arg) { (void)arg; pthread_barrier_wait(&barrier); return 0; }
static void *dies_holding(void *arg) { pthread_mutex_lock(arg); return 0; }
static void *sleeps(void *arg) { (void)arg; sleep(100); return 0; }
static void *nothing(void *arg) { return arg; }
static sem_t sem;
static void *poster(void *arg) { (void)arg; for (int i = 0; i < 1000; i++) sem_post(&sem); return 0; }

int main(void) {
    pthread_t t[8];
    void *r;
    for (int i = 0; i < 8; i++) CHECK(pthread_create(&t[i], 0, adder, (void *)(intptr_t)i) == 0);
    for (int i = 0; i < 8; i++) { pthread_join(t[i], &r); CHECK((intptr_t)r == i + 3); }
    CHECK(counter == 160000);
    pthread_create(&t[0], 0, pingpong, (void *)0);
    pthread_create(&t[1], 0, pingpong, (void *)1);
    pthread_join(t[0], 0); pthread_join(t[1], 0);
    pthread_barrier_init(&barrier, 0, 5);
    for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, waits, 0);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);

    /* robust and priority-inheritance mutexes */
    pthread_mutexattr_t at;
    pthread_mutex_t robust;
    pthread_mutexattr_init(&at);
    pthread_mutexattr_setrobust(&at, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &at);
    pthread_create(&t[0], 0, dies_holding, &robust);
    pthread_join(t[0], 0);
    CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
    pthread_mutexattr_t pi;
    pthread_mutexattr_init(&pi);
    pthread_mutexattr_setprotocol(&pi, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&mutex, &pi);
    counter = 0;
    for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, adder, 0);
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    CHECK(counter == 80000);

    /* process-shared */
    pthread_mutexattr_t ps;
    pthread_mutexattr_init(&ps);
    pthread_mutexattr_setpshared(&ps, PTHREAD_PROCESS_SHARED);
    struct { pthread_mutex_t m; int n; sem_t s; } *sh =
        mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutex_init(&sh->m, &ps);
    sem_init(&sh->s, 1, 0);
    pid_t p = fork();
    for (int i = 0; i < 5000; i++) { pthread_mutex_lock(&sh->m); sh->n++; pthread_mutex_unlock(&sh->m); }
    if (p == 0) { sem_post(&sh->s); _exit(0); }
    CHECK(sem_wait(&sh->s) == 0);
    waitpid(p, 0, 0);
    CHECK(sh->n == 10000);

    /* cancellation, semaphores, timed waits */
    pthread_create(&t[0], 0, sleeps, 0);
    usleep(20000);
    pthread_cancel(t[0]);
    pthread_join(t[0], &r);
    CHECK(r == PTHREAD_CANCELED);
    sem_init(&sem, 0, 0);
    pthread_create(&t[0], 0, poster, 0);
    for (int i = 0; i < 1000; i++) CHECK(sem_wait(&sem) == 0);
    pthread_join(t[0], 0);
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_nsec += 50000000;
    if (ts.tv_nsec >= 1000000000) { ts.tv_sec++; ts.tv_nsec -= 1000000000; }
    int64_t before = now_ms();
    CHECK(sem_timedwait(&sem, &ts) == -1 && errno == ETIMEDOUT);
    CHECK(now_ms() - before >= 45 && now_ms() - before < 1000);

    /* raw futex */
    uint32_t word = 1;
    CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 2, 0, 0, 0) == -1 && errno == EAGAIN);
    CHECK(syscall(SYS_futex, &word, FUTEX_WAKE, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_futex, (char *)&word + 1, FUTEX_WAKE, 1, 0, 0, 0) == -1 && errno == EINVAL);
    struct timespec ms = {0, 5000000};
    CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &ms, 0, 0) == -1 && errno == ETIMEDOUT);

    for (int i = 0; i < 300; i++) {
        CHECK(pthread_create(&t[0], 0, nothing, (void *)7) == 0);
        CHECK(pthread_join(t[0], &r) == 0 && r == (void *)7);
    }
    return finish("threads");
}
