#include "check.h"
#include <cpuid.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/time.h>

/*
 * Every register holds a pattern when a system call is made, a page is touched or an instruction
 * traps: it is all there afterwards, as Linux promises. In the enclave's run the host looks at the
 * same moments for the pattern (bulla run --examine-exits, see exits.rs of the loader): what is not
 * cleared before an exit is found there.
 */
#define CANARY 0x5ec2e7005ec2e700ull

struct state {
    uint64_t number, arguments[6], result;
    uint64_t kept[5];            /* rbx rbp r12 r13 r15 */
    uint64_t caller[6];          /* the argument registers afterwards */
    uint8_t x87[8][16], x87_after[8][16];
    uint8_t mmx[8][8], mmx_after[8][8];
    uint8_t ymm[16][32] __attribute__((aligned(32))), ymm_after[16][32] __attribute__((aligned(32)));
    uint8_t zmm[32][64] __attribute__((aligned(64))), zmm_after[32][64] __attribute__((aligned(64)));
    uint64_t opmask[8], opmask_after[8];
    uint32_t mxcsr, mxcsr_after;
    uint16_t control, control_after;
};
static int has_avx, has_avx512;

#define FIELD(name) offsetof(struct state, name)
#define STR2(x) #x
#define STR(x) STR2(x)

/* What happens while the registers are full. */
enum event { SYSTEM_CALL, NUMBERED_CALL, TOUCH, TRAP };

#define ALL16(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) \
    op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define UPPER16(op) op(16) op(17) op(18) op(19) op(20) op(21) op(22) op(23) \
    op(24) op(25) op(26) op(27) op(28) op(29) op(30) op(31)
#define ALL8(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)

#define LOAD_YMM(n) "vmovaps %c[ymm] + 32 * " #n "(%%r14), %%ymm" #n "\n"
#define STORE_YMM(n) "vmovaps %%ymm" #n ", %c[ymm_after] + 32 * " #n "(%%r14)\n"
#define LOAD_ZMM(n) "vmovdqa64 %c[zmm] + 64 * " #n "(%%r14), %%zmm" #n "\n"
#define STORE_ZMM(n) "vmovdqa64 %%zmm" #n ", %c[zmm_after] + 64 * " #n "(%%r14)\n"
#define LOAD_K(n) "kmovq %c[opmask] + 8 * " #n "(%%r14), %%k" #n "\n"
#define STORE_K(n) "kmovq %%k" #n ", %c[opmask_after] + 8 * " #n "(%%r14)\n"
#define LOAD_XMM(n) "movaps %c[ymm] + 32 * " #n "(%%r14), %%xmm" #n "\n"
#define STORE_XMM(n) "movaps %%xmm" #n ", %c[ymm_after] + 32 * " #n "(%%r14)\n"
#define LOAD_X87(n) "fldt %c[x87] + 16 * " #n "(%%r14)\n"
#define STORE_X87(n) "fstpt %c[x87_after] + 16 * " #n "(%%r14)\n"
#define LOAD_MMX(n) "movq %c[mmx] + 8 * " #n "(%%r14), %%mm" #n "\n"
#define STORE_MMX(n) "movq %%mm" #n ", %c[mmx_after] + 8 * " #n "(%%r14)\n"

#define BEFORE                                                                                    \
    "push %%rbp\n push %%rbx\n"                                                                   \
    "ldmxcsr %c[mxcsr](%%r14)\n fldcw %c[control](%%r14)\n"
#define FILL                                                                                      \
    "mov %c[number](%%r14), %%rax\n"                                                              \
    "mov %c[arguments](%%r14), %%rdi\n mov %c[arguments] + 8(%%r14), %%rsi\n"                     \
    "mov %c[arguments] + 16(%%r14), %%rdx\n mov %c[arguments] + 24(%%r14), %%r10\n"               \
    "mov %c[arguments] + 32(%%r14), %%r8\n mov %c[arguments] + 40(%%r14), %%r9\n"                 \
    "mov %[canary], %%rbx\n lea 1(%%rbx), %%rbp\n lea 2(%%rbx), %%r12\n"                          \
    "lea 3(%%rbx), %%r13\n lea 4(%%rbx), %%r15\n lea 5(%%rbx), %%rcx\n lea 6(%%rbx), %%r11\n"
#define KEEP                                                                                      \
    "mov %%rax, %c[result](%%r14)\n mov %%rbx, %c[kept](%%r14)\n mov %%rbp, %c[kept] + 8(%%r14)\n" \
    "mov %%r12, %c[kept] + 16(%%r14)\n mov %%r13, %c[kept] + 24(%%r14)\n"                         \
    "mov %%r15, %c[kept] + 32(%%r14)\n"                                                           \
    "mov %%rdi, %c[caller](%%r14)\n mov %%rsi, %c[caller] + 8(%%r14)\n"                           \
    "mov %%rdx, %c[caller] + 16(%%r14)\n mov %%r10, %c[caller] + 24(%%r14)\n"                     \
    "mov %%r8, %c[caller] + 32(%%r14)\n mov %%r9, %c[caller] + 40(%%r14)\n"
#define AFTER                                                                                     \
    "stmxcsr %c[mxcsr_after](%%r14)\n fnstcw %c[control_after](%%r14)\n fninit\n"                 \
    "movl $0x1f80, -8(%%rsp)\n ldmxcsr -8(%%rsp)\n pop %%rbx\n pop %%rbp\n"

#define RUN(load, event, store)                                                                   \
    __asm__ volatile(BEFORE load FILL event "\n" KEEP store AFTER                                  \
        :                                                                                         \
        : "r"(r14), [canary] "i"(CANARY), [number] "i"(FIELD(number)),                            \
          [arguments] "i"(FIELD(arguments)), [result] "i"(FIELD(result)), [kept] "i"(FIELD(kept)),  \
          [caller] "i"(FIELD(caller)), [x87] "i"(FIELD(x87)), [x87_after] "i"(FIELD(x87_after)),  \
          [mmx] "i"(FIELD(mmx)), [mmx_after] "i"(FIELD(mmx_after)), [ymm] "i"(FIELD(ymm)),        \
          [ymm_after] "i"(FIELD(ymm_after)), [zmm] "i"(FIELD(zmm)),                               \
          [zmm_after] "i"(FIELD(zmm_after)), [opmask] "i"(FIELD(opmask)),                         \
          [opmask_after] "i"(FIELD(opmask_after)), [mxcsr] "i"(FIELD(mxcsr)),                     \
          [mxcsr_after] "i"(FIELD(mxcsr_after)), [control] "i"(FIELD(control)),                   \
          [control_after] "i"(FIELD(control_after))                                               \
        : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r15",       \
          "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",  \
          "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

/* Different code, so that each is a site of its own: an instruction that follows, a number before. */
#define CALL "syscall"
#define NUMBERED "mov $" STR(110) ", %%eax\n syscall" /* getppid */
#define TOUCHES "movb $1, (%%rdi)"
#define TRAPS "ud2"

#define WITH(vectors_in, vectors_out)                                                             \
    switch (event * 2 + mmx) {                                                                    \
    case SYSTEM_CALL * 2:                                                                         \
        RUN(vectors_in ALL8(LOAD_X87), CALL, ALL8(STORE_X87) vectors_out); break;                 \
    case SYSTEM_CALL * 2 + 1:                                                                     \
        RUN(vectors_in ALL8(LOAD_MMX), CALL, ALL8(STORE_MMX) vectors_out); break;                 \
    case NUMBERED_CALL * 2:                                                                       \
        RUN(vectors_in ALL8(LOAD_X87), NUMBERED, ALL8(STORE_X87) vectors_out); break;             \
    case NUMBERED_CALL * 2 + 1:                                                                   \
        RUN(vectors_in ALL8(LOAD_MMX), NUMBERED, ALL8(STORE_MMX) vectors_out); break;             \
    case TOUCH * 2:                                                                               \
        RUN(vectors_in ALL8(LOAD_X87), TOUCHES, ALL8(STORE_X87) vectors_out); break;              \
    case TOUCH * 2 + 1:                                                                           \
        RUN(vectors_in ALL8(LOAD_MMX), TOUCHES, ALL8(STORE_MMX) vectors_out); break;              \
    case TRAP * 2:                                                                                \
        RUN(vectors_in ALL8(LOAD_X87), TRAPS, ALL8(STORE_X87) vectors_out); break;                \
    case TRAP * 2 + 1:                                                                            \
        RUN(vectors_in ALL8(LOAD_MMX), TRAPS, ALL8(STORE_MMX) vectors_out); break;                \
    }

static __attribute__((noinline, target("avx512bw"))) void run_avx512(enum event event, int mmx, struct state *at) {
    register struct state *r14 __asm__("r14") = at;
    WITH(ALL16(LOAD_ZMM) UPPER16(LOAD_ZMM) ALL8(LOAD_K),
         ALL16(STORE_ZMM) UPPER16(STORE_ZMM) ALL8(STORE_K))
    __asm__ volatile("vzeroupper");
}

static __attribute__((noinline, target("avx"))) void run_avx(enum event event, int mmx, struct state *at) {
    register struct state *r14 __asm__("r14") = at;
    WITH(ALL16(LOAD_YMM), ALL16(STORE_YMM))
    __asm__ volatile("vzeroupper");
}

static __attribute__((noinline)) void run_sse(enum event event, int mmx, struct state *at) {
    register struct state *r14 __asm__("r14") = at;
    WITH(ALL16(LOAD_XMM), ALL16(STORE_XMM))
}

static void fill(void *bytes, size_t len) {
    const uint64_t canary = CANARY;
    for (size_t i = 0; i < len; i++) ((uint8_t *)bytes)[i] = ((const uint8_t *)&canary)[i % 8];
}

/* Runs an event with full registers; the result of a call. */
static long with_full_registers(enum event event, long number, int count, const long *arguments) {
    struct state state __attribute__((aligned(64)));
    for (int mmx = 0; mmx < 2; mmx++) {
        memset(&state, 0, sizeof state);
        state.number = (uint64_t)number;
        for (int i = 0; i < 6; i++)
            state.arguments[i] = i < count ? (uint64_t)arguments[i] : CANARY + 16 + (uint64_t)i;
        fill(state.ymm, sizeof state.ymm);
        fill(state.mmx, sizeof state.mmx);
        for (int i = 0; i < 8; i++) {
            fill(state.x87[i], 8);
            state.x87[i][7] |= 0x80; /* a normal number */
            state.x87[i][8] = (uint8_t)i;
            state.x87[i][9] = 0x40;
        }
        state.mxcsr = 0x3f80;   /* round down */
        state.control = 0x0b7f; /* round up */
        fill(state.zmm, sizeof state.zmm);
        fill(state.opmask, sizeof state.opmask);
        if (has_avx512) run_avx512(event, mmx, &state);
        else if (has_avx) run_avx(event, mmx, &state);
        else run_sse(event, mmx, &state);
        for (int i = 0; i < 5; i++) CHECK(state.kept[i] == CANARY + (uint64_t)i);
        for (int i = 0; i < 6; i++) CHECK(state.caller[i] == state.arguments[i]);
        if (has_avx512) {
            CHECK(memcmp(state.zmm, state.zmm_after, sizeof state.zmm) == 0);
            CHECK(memcmp(state.opmask, state.opmask_after, sizeof state.opmask) == 0);
        } else if (has_avx) CHECK(memcmp(state.ymm, state.ymm_after, sizeof state.ymm) == 0);
        else
            for (int i = 0; i < 16; i++) CHECK(memcmp(state.ymm[i], state.ymm_after[i], 16) == 0);
        if (mmx) CHECK(memcmp(state.mmx, state.mmx_after, sizeof state.mmx) == 0);
        else
            for (int i = 0; i < 8; i++)
                CHECK(memcmp(state.x87[i], state.x87_after[7 - i], 10) == 0);
        CHECK(state.mxcsr_after == state.mxcsr && state.control_after == state.control);
    }
    return (long)state.result;
}

static long call(long number, int count, long a, long b, long c, long d) {
    const long arguments[6] = {a, b, c, d};
    return with_full_registers(SYSTEM_CALL, number, count, arguments);
}

static void past_it(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static volatile int ticks;
static void tick(int signal) { (void)signal; ticks++; }

static void *thread(void *arg) {
    struct timespec soon = {0, 200000};
    for (int i = 0; i < 5; i++) CHECK(call(SYS_nanosleep, 2, (long)&soon, 0, 0, 0) == 0);
    /* It ends with full registers too. */
    if (arg) call(SYS_exit, 1, 0, 0, 0, 0);
    return 0;
}

int main(int argc, char **argv) {
    has_avx = __builtin_cpu_supports("avx");
    has_avx512 = has_feature("avx512bw");
    struct timespec soon = {0, 100000};
    uint32_t word = 1;
    char byte;
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    /* More than once each: a site traps first and is rewritten then. */
    for (int round = 0; round < 4; round++) {
        CHECK(call(SYS_write, 3, 1, (long)"", 0, 0) == 0);
        CHECK(call(SYS_getppid, 0, 0, 0, 0, 0) == getppid());
        CHECK(with_full_registers(NUMBERED_CALL, 0, 0, 0) == getppid());
        CHECK(call(SYS_nanosleep, 2, (long)&soon, 0, 0, 0) == 0);
        CHECK(call(SYS_futex, 4, (long)&word, FUTEX_WAIT, 1, (long)&soon) == -ETIMEDOUT);
        CHECK(call(SYS_sched_yield, 0, 0, 0, 0, 0) == 0);
        CHECK(call(SYS_read, 3, 0, (long)&byte, 1, 0) == 0);
        CHECK(call(SYS_write, 3, pipes[1], (long)"x", 1, 0) == 1);
        CHECK(call(SYS_read, 3, pipes[0], (long)&byte, 1, 0) == 1);
        write(pipes[1], "x", 1);
        call(SYS_fsync, 1, 1, 0, 0, 0);
        void *pages = mmap(0, 64 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (long at = 0; at < 64; at += 9) {
            const long arguments[1] = {(long)pages + (at << 12)};
            with_full_registers(TOUCH, 0, 1, arguments);
        }
        munmap(pages, 64 << 12);
        read(pipes[0], &byte, 1);
    }
    struct sigaction past = {.sa_sigaction = past_it, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &past, 0);
    for (int i = 0; i < 3; i++) with_full_registers(TRAP, 0, 0, 0);
    /* Interrupted at any place. */
    signal(SIGALRM, tick);
    struct itimerval often = {{0, 700}, {0, 700}};
    setitimer(ITIMER_REAL, &often, 0);
    while (ticks < 100) CHECK(with_full_registers(NUMBERED_CALL, 0, 0, 0) == getppid());
    memset(&often, 0, sizeof often);
    setitimer(ITIMER_REAL, &often, 0);
    pthread_t threads[2];
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, thread, (void *)i);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], 0) == 0);
    pid_t child = fork();
    if (child == 0) {
        call(SYS_exit_group, 1, 7, 0, 0, 0);
        _exit(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    if (argc > 1) {
        /* Somebody's child: the exec happens with full registers. */
        puts("registers: ok");
        return 0;
    }
    if (failures) return finish("registers");
    fflush(stdout);
    char *again[] = {argv[0], "again", 0}, *none[] = {0};
    call(SYS_execve, 3, (long)argv[0], (long)again, (long)none, 0);
    CHECK(!"the exec succeeds");
    return finish("registers");
}
