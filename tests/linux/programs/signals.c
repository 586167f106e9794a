#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <ucontext.h>
#include <poll.h>
#include <sys/select.h>

static volatile sig_atomic_t count, last, value, on_alt;
static char alt[65536];
static sigjmp_buf back;
static volatile void *fault_address;

static void handler(int s) { count++; last = s; }
static void info_handler(int s, siginfo_t *i, void *c) {
    (void)c;
    count++; last = s; value = i->si_value.sival_int;
    char here;
    on_alt = &here >= alt && &here < alt + sizeof alt;
}
static void segv(int s, siginfo_t *i, void *c) {
    (void)s; (void)c;
    fault_address = i->si_addr;
    siglongjmp(back, i->si_code);
}
static volatile double vector_result;
static void fp_handler(int s) { (void)s; double x = 3.25; for (int i = 0; i < 10; i++) x *= 1.5; vector_result = x; }

static void *sender(void *arg) {
    usleep(50000);
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return 0;
}
static void ready_after(void (*f)(int), int flags) {
    struct sigaction a = {.sa_handler = f, .sa_flags = flags};
    sigaction(SIGUSR1, &a, 0);
}

int main(void) {
    struct sigaction a = {.sa_handler = handler};
    CHECK(sigaction(SIGUSR1, &a, 0) == 0);
    raise(SIGUSR1);
    CHECK(count == 1 && last == SIGUSR1);

    /* blocked, pending, unblocked; real-time signals queue in order */
    sigset_t set, old, pending;
    sigemptyset(&set); sigaddset(&set, SIGUSR1); sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, &old);
    count = 0;
    raise(SIGUSR1); raise(SIGUSR1);
    CHECK(count == 0);
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR1) && !sigismember(&pending, SIGUSR2));
    struct sigaction b = {.sa_sigaction = info_handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 1, &b, 0);
    for (int i = 1; i <= 3; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = i}) == 0);
    siginfo_t si;
    sigset_t rt; sigemptyset(&rt); sigaddset(&rt, SIGRTMIN + 1);
    CHECK(sigwaitinfo(&rt, &si) == SIGRTMIN + 1 && si.si_value.sival_int == 1 && si.si_code == SI_QUEUE);
    sigprocmask(SIG_SETMASK, &old, 0);
    CHECK(count == 3 && value == 3);
    struct timespec zero = {0, 1000000};
    CHECK(sigtimedwait(&rt, &si, &zero) == -1 && errno == EAGAIN);

    /* alternate stack */
    stack_t st = {.ss_sp = alt, .ss_size = sizeof alt};
    CHECK(sigaltstack(&st, 0) == 0);
    b.sa_flags |= SA_ONSTACK;
    sigaction(SIGUSR2, &b, 0);
    raise(SIGUSR2);
    CHECK(on_alt);
    stack_t now;
    sigaltstack(0, &now);
    CHECK(now.ss_flags == 0 && now.ss_sp == alt);

    /* faults */
    struct sigaction f = {.sa_sigaction = segv, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &f, 0); sigaction(SIGFPE, &f, 0); sigaction(SIGILL, &f, 0); sigaction(SIGTRAP, &f, 0);
    sigaction(SIGBUS, &f, 0);
    int code = sigsetjmp(back, 1);
    if (!code) { *(volatile int *)24 = 1; }
    CHECK(code == SEGV_MAPERR && fault_address == (void *)24);
    char *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    code = sigsetjmp(back, 1);
    if (!code) { page[8] = 1; }
    CHECK(code == SEGV_ACCERR && fault_address == page + 8);
    code = sigsetjmp(back, 1);
    volatile int nought = 0, one = 1;
    if (!code) { one = one / nought; }
    CHECK(code == FPE_INTDIV);
    code = sigsetjmp(back, 1);
    if (!code) { __asm__ volatile("ud2"); }
    CHECK(code == ILL_ILLOPN);
    code = sigsetjmp(back, 1);
    if (!code) { __asm__ volatile("int3"); }
    CHECK(code == SI_KERNEL);

    /* vector registers survive a handler */
    struct sigaction v = {.sa_handler = fp_handler};
    sigaction(SIGUSR2, &v, 0);
    double in[4] = {1.5, 2.5, 3.5, 4.5}, out[4];
    pid_t self = getpid();
    __asm__ volatile(
        "movupd (%[in]), %%xmm5\n movupd 16(%[in]), %%xmm13\n"
        "mov $62, %%eax\n mov %[pid], %%edi\n mov $12, %%esi\n syscall\n"
        "movupd %%xmm5, (%[out])\n movupd %%xmm13, 16(%[out])\n"
        : : [in] "r"(in), [out] "r"(out), [pid] "r"(self)
        : "rax", "rdi", "rsi", "rcx", "r11", "xmm5", "xmm13", "memory");
    CHECK(memcmp(in, out, sizeof in) == 0 && vector_result > 187);

    /* restart: a pipe read goes on with SA_RESTART, ends without */
    int p[2];
    CHECK(pipe(p) == 0);
    pthread_t me = pthread_self(), t;
    char c;
    ready_after(handler, 0);
    pthread_create(&t, 0, sender, &me);
    CHECK(read(p[0], &c, 1) == -1 && errno == EINTR);
    pthread_join(t, 0);
    ready_after(handler, SA_RESTART);
    count = 0;
    pid_t child = fork();
    if (child == 0) { usleep(50000); kill(getppid(), SIGUSR1); usleep(50000); write(p[1], "x", 1); _exit(0); }
    CHECK(read(p[0], &c, 1) == 1 && c == 'x' && count == 1);
    CHECK(waitpid(child, 0, 0) == child);
    pthread_create(&t, 0, sender, &me);
    struct timespec long_time = {5, 0}, rest = {0};
    CHECK(nanosleep(&long_time, &rest) == -1 && errno == EINTR && rest.tv_sec == 4);
    pthread_join(t, 0);
    pthread_create(&t, 0, sender, &me);
    CHECK(poll(0, 0, 5000) == -1 && errno == EINTR);
    pthread_join(t, 0);

    /* stopped and continued: sleep and poll end when they would have */
    for (int way = 0; way < 2; way++) {
        int64_t begin = now_ms();
        child = fork();
        if (child == 0) {
            struct timespec part = {1, 0};
            _exit(way ? poll(0, 0, 1000) != 0 : nanosleep(&part, 0) != 0);
        }
        usleep(50000);
        kill(child, SIGSTOP);
        int status;
        CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
        usleep(50000);
        kill(child, SIGCONT);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(now_ms() - begin >= 995);
    }

    /* sigsuspend and ppoll with masks */
    sigemptyset(&set); sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &old);
    count = 0;
    raise(SIGUSR1);
    CHECK(sigsuspend(&old) == -1 && errno == EINTR && count == 1);
    sigprocmask(SIG_BLOCK, 0, &pending);
    CHECK(sigismember(&pending, SIGUSR1));
    raise(SIGUSR1);
    struct timespec second = {1, 0};
    CHECK(ppoll(0, 0, &second, &old) == -1 && errno == EINTR && count == 2);

    /* signalfd */
    int sfd = signalfd(-1, &set, SFD_NONBLOCK);
    CHECK(sfd >= 0);
    raise(SIGUSR1);
    struct pollfd pf = {.fd = sfd, .events = POLLIN};
    CHECK(poll(&pf, 1, 0) == 1);
    struct signalfd_siginfo ssi;
    CHECK(read(sfd, &ssi, sizeof ssi) == sizeof ssi && ssi.ssi_signo == SIGUSR1 && ssi.ssi_pid == (unsigned)getpid());
    CHECK(read(sfd, &ssi, sizeof ssi) == -1 && errno == EAGAIN);
    sigprocmask(SIG_SETMASK, &old, 0);

    /* SA_RESETHAND, SA_NODEFER */
    struct sigaction r = {.sa_handler = handler, .sa_flags = SA_RESETHAND}, q;
    sigaction(SIGUSR1, &r, 0);
    raise(SIGUSR1);
    sigaction(SIGUSR1, 0, &q);
    CHECK(q.sa_handler == SIG_DFL);
    return finish("signals");
}
