#include "check.h"
#include <pthread.h>
#include <sys/mman.h>

/* Everything at once: signals, forks, execs and exits of a process with many threads. */
static volatile sig_atomic_t got;
static volatile int stop;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static long work;

static void handler(int s) { (void)s; got++; }

static void *worker(void *arg) {
    (void)arg;
    while (!stop) {
        pthread_mutex_lock(&lock);
        work++;
        pthread_cond_signal(&cond);
        pthread_mutex_unlock(&lock);
        if (work % 64 == 0) usleep(100);
    }
    return 0;
}
static void *waiter(void *arg) {
    (void)arg;
    while (!stop) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 2000000;
        if (t.tv_nsec >= 1000000000) { t.tv_sec++; t.tv_nsec -= 1000000000; }
        pthread_mutex_lock(&lock);
        pthread_cond_timedwait(&cond, &lock, &t);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}
static void *sleeper(void *arg) { (void)arg; for (;;) pause(); return 0; }
static void *spinner(void *arg) { (void)arg; for (;;) __asm__ volatile("pause"); return 0; }
static void *execs(void *arg) { char *argv[] = {arg, "--done", 0}; execv(arg, argv); return 0; }

int main(int argc, char **argv) {
    if (argc > 1) return 23;
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &a, 0);
    pthread_t t[8];
    int status;
    for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, worker, 0);
    for (int i = 4; i < 8; i++) pthread_create(&t[i], 0, waiter, 0);
    for (int i = 0; i < 400; i++) {
        pthread_kill(t[i % 8], SIGUSR1);
        kill(getpid(), SIGUSR1);
        if (i % 40 == 0) {
            pid_t p = fork();
            if (p == 0) _exit(i / 40);
            CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == i / 40);
        }
    }
    stop = 1;
    for (int i = 0; i < 8; i++) CHECK(pthread_join(t[i], 0) == 0);
    CHECK(got > 0 && work > 0);

    /* processes with sleeping and spinning threads: killed, exiting, executing, stopped */
    for (int i = 0; i < 12; i++) {
        pid_t p = fork();
        if (p == 0) {
            pthread_create(&t[0], 0, sleeper, 0);
            pthread_create(&t[1], 0, spinner, 0);
            pthread_create(&t[2], 0, sleeper, 0);
            if (i % 4 == 0) _exit(9);
            if (i % 4 == 1) pthread_create(&t[3], 0, execs, argv[0]);
            for (;;) pause();
        }
        if (i % 4 == 2) { usleep(3000); kill(p, SIGKILL); }
        if (i % 4 == 3) {
            usleep(3000);
            kill(p, SIGSTOP);
            CHECK(waitpid(p, &status, WUNTRACED) == p && WIFSTOPPED(status));
            kill(p, SIGCONT);
            kill(p, SIGTERM);
        }
        CHECK(waitpid(p, &status, 0) == p);
        switch (i % 4) {
        case 0: CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9); break;
        case 1: CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 23); break;
        case 2: CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); break;
        case 3: CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM); break;
        }
    }

    /* a deep chain of forks */
    pid_t p = fork();
    if (p == 0) {
        for (int depth = 0; depth < 8; depth++) {
            pid_t q = fork();
            if (q) { waitpid(q, &status, 0); _exit(WEXITSTATUS(status) + 1); }
        }
        _exit(0);
    }
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 8);

    /* many at once */
    pid_t all[20];
    for (int i = 0; i < 20; i++) {
        all[i] = fork();
        if (all[i] == 0) { usleep(1000 * (i % 5)); _exit(i); }
    }
    for (int i = 0; i < 20; i++) CHECK(waitpid(all[i], &status, 0) == all[i] && WEXITSTATUS(status) == i);
    return finish("storm");
}
