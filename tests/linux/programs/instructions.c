#include "check.h"
#include <pthread.h>
#include <sys/time.h>
#include <ucontext.h>

/*
 * CPUID, RDTSC and RDTSCP, which an enclave serves for the program: they change their own registers
 * and nothing else, neither the red zone nor flags nor vectors; also while signals come whose
 * handlers execute them, and in many threads at once. No handler sees a program counter that is not
 * in the program.
 */

struct state {
    uint64_t general[16]; /* rax rbx rcx rdx rsi rdi rbp r8-r15, and the flags */
    uint64_t vectors[32];
    uint64_t red_zone[16];
};

static struct state in __attribute__((used)), out __attribute__((used));
static uint64_t kept[6] __attribute__((used));

/*
 * Loads everything from `in`, executes the instruction, stores everything to `out`. The stack
 * pointer is where it was, so that the words below it are a red zone.
 */
#define FOR_VECTORS(what) \
    what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) \
    what(11) what(12) what(13) what(14) what(15)
#define LOAD_VECTOR(n) "movups 128+16*" #n "+in(%rip), %xmm" #n "\n"
#define STORE_VECTOR(n) "movups %xmm" #n ", 128+16*" #n "+out(%rip)\n"
#define LOAD_ZONE(n) "mov 384+8*" #n "+in(%rip), %rax\n mov %rax, -8-8*" #n "(%rsp)\n"
#define STORE_ZONE(n) "mov -8-8*" #n "(%rsp), %rax\n mov %rax, 384+8*" #n "+out(%rip)\n"
#define PROBE(name, instruction)                                                              \
    __asm__(".text\n.balign 64\n.type " #name ", @function\n" #name ":\n"                      \
            "mov %rbx, kept(%rip)\n mov %rbp, 8+kept(%rip)\n mov %r12, 16+kept(%rip)\n"        \
            "mov %r13, 24+kept(%rip)\n mov %r14, 32+kept(%rip)\n mov %r15, 40+kept(%rip)\n"    \
            "push 120+in(%rip)\n popfq\n" FOR_VECTORS(LOAD_VECTOR) FOR_VECTORS(LOAD_ZONE)      \
            "mov in(%rip), %rax\n mov 8+in(%rip), %rbx\n mov 16+in(%rip), %rcx\n"              \
            "mov 24+in(%rip), %rdx\n mov 32+in(%rip), %rsi\n mov 40+in(%rip), %rdi\n"          \
            "mov 48+in(%rip), %rbp\n mov 56+in(%rip), %r8\n mov 64+in(%rip), %r9\n"            \
            "mov 72+in(%rip), %r10\n mov 80+in(%rip), %r11\n mov 88+in(%rip), %r12\n"          \
            "mov 96+in(%rip), %r13\n mov 104+in(%rip), %r14\n mov 112+in(%rip), %r15\n"        \
            instruction "\n nopl (%rax)\n"                                                     \
            "mov %rax, out(%rip)\n mov %rbx, 8+out(%rip)\n mov %rcx, 16+out(%rip)\n"           \
            "mov %rdx, 24+out(%rip)\n mov %rsi, 32+out(%rip)\n mov %rdi, 40+out(%rip)\n"       \
            "mov %rbp, 48+out(%rip)\n mov %r8, 56+out(%rip)\n mov %r9, 64+out(%rip)\n"         \
            "mov %r10, 72+out(%rip)\n mov %r11, 80+out(%rip)\n mov %r12, 88+out(%rip)\n"       \
            "mov %r13, 96+out(%rip)\n mov %r14, 104+out(%rip)\n mov %r15, 112+out(%rip)\n"     \
            FOR_VECTORS(STORE_ZONE) FOR_VECTORS(STORE_VECTOR)                                  \
            "pushfq\n pop 120+out(%rip)\n cld\n"                                               \
            "mov kept(%rip), %rbx\n mov 8+kept(%rip), %rbp\n mov 16+kept(%rip), %r12\n"        \
            "mov 24+kept(%rip), %r13\n mov 32+kept(%rip), %r14\n mov 40+kept(%rip), %r15\n"    \
            "ret\n.size " #name ", .-" #name "\n");                                            \
    extern void name(void);
PROBE(probe_cpuid, "cpuid")
PROBE(probe_rdtsc, "rdtsc")
PROBE(probe_rdtscp, "rdtscp")

/* As compilers write them: what follows can move; the leaf is loaded just before. */
__asm__(".text\n.balign 64\n.type vendor, @function\nvendor:\n"
        "push %rbx\n xor %ecx, %ecx\n mov $0, %eax\n cpuid\n mov %ebx, (%rdi)\n mov %edx, 4(%rdi)\n"
        "mov %ecx, 8(%rdi)\n pop %rbx\n ret\n.size vendor, .-vendor\n"
        ".balign 64\n.type ticks, @function\nticks:\n"
        "rdtsc\n shl $32, %rdx\n or %rdx, %rax\n ret\n.size ticks, .-ticks\n"
        ".balign 64\n.type ticks_of, @function\nticks_of:\n"
        "rdtscp\n shl $32, %rdx\n or %rdx, %rax\n mov %ecx, (%rdi)\n ret\n.size ticks_of, .-ticks_of\n");
extern void vendor(unsigned *words);
extern uint64_t ticks(void), ticks_of(unsigned *processor);

static unsigned known_vendor[3];
static volatile int handled, wrong;
static volatile unsigned long seen[4096];

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    seen[handled % 4096] = (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    unsigned words[3];
    vendor(words);
    wrong += memcmp(words, known_vendor, sizeof words) != 0;
    uint64_t before = ticks();
    wrong += ticks() < before;
    handled++;
}

static void check_seen(void) {
    static unsigned long starts[512], ends[512];
    int mappings = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && mappings < 512 && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &starts[mappings], &ends[mappings]) == 2) mappings++;
    CHECK(maps && mappings > 3);
    if (maps) fclose(maps);
    for (int i = 0; i < handled && i < 4096; i++) {
        int found = 0;
        for (int m = 0; m < mappings; m++) found |= seen[i] >= starts[m] && seen[i] < ends[m];
        if (!found) printf("FAIL: interrupted at %#lx, which is nowhere\n", seen[i]), failures++;
    }
}

/* Which of rax, rbx, rcx and rdx an instruction may change, as bits. */
static void probe(void (*one)(void), unsigned changes, const char *name) {
    static const uint64_t flags[] = {0x202, 0x202 | 0x8d5, 0x202 | 0x400, 0x202 | 0x1 | 0x800};
    for (unsigned i = 0; i < 400; i++) {
        for (int r = 0; r < 15; r++) in.general[r] = 0x0101010101010101ull * (unsigned)(r + 1) + i;
        in.general[0] = in.general[2] = 0; /* leaf 0 */
        in.general[15] = flags[i % 4];
        for (int v = 0; v < 32; v++) in.vectors[v] = 0x1111111111111111ull + (unsigned)v * i;
        for (int z = 0; z < 16; z++) in.red_zone[z] = 0x2222222222222222ull + (unsigned)z * i;
        one();
        for (int r = 0; r < 15; r++)
            if ((r >= 4 || !(changes & 1u << r)) && out.general[r] != in.general[r])
                printf("FAIL: %s changed register %d\n", name, r), failures++;
        for (int r = 0; r < 4; r++)
            if (changes & 1u << r && out.general[r] >> 32)
                printf("FAIL: %s left upper bits in register %d\n", name, r), failures++;
        CHECK((out.general[15] & 0xed5) == (in.general[15] & 0xed5));
        CHECK(memcmp(in.vectors, out.vectors, sizeof in.vectors) == 0);
        CHECK(memcmp(in.red_zone, out.red_zone, sizeof in.red_zone) == 0);
        if (one == probe_cpuid) {
            unsigned words[3] = {(unsigned)out.general[1], (unsigned)out.general[3],
                                 (unsigned)out.general[2]};
            CHECK(memcmp(words, known_vendor, sizeof words) == 0);
        }
        if (failures > 20) return;
    }
}

static void *many(void *arg) {
    (void)arg;
    uint64_t last = 0;
    unsigned words[3], processor;
    for (int i = 0; i < 300; i++) {
        vendor(words);
        CHECK(memcmp(words, known_vendor, sizeof words) == 0);
        uint64_t now = i % 2 ? ticks() : ticks_of(&processor);
        CHECK(i == 0 || now + 100000000 >= last);
        last = now;
    }
    return 0;
}

int main(void) {
    vendor(known_vendor);
    CHECK(known_vendor[0] != 0 && known_vendor[1] != 0 && known_vendor[2] != 0);
    uint64_t first = ticks();
    usleep(2000);
    CHECK(ticks() > first);

    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, 0) == 0);
    struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, 0) == 0);
    int64_t end = now_ms() + 20000;
    do {
        probe(probe_cpuid, 0xf, "cpuid");
        probe(probe_rdtsc, 0x9, "rdtsc");
        probe(probe_rdtscp, 0xd, "rdtscp");
    } while (handled < 50 && !failures && now_ms() < end);
    CHECK(setitimer(ITIMER_REAL, &never, 0) == 0);
    CHECK(handled > 0 && wrong == 0);
    check_seen();

    pthread_t threads[8];
    for (int t = 0; t < 8; t++) CHECK(pthread_create(&threads[t], 0, many, 0) == 0);
    for (int t = 0; t < 8; t++) CHECK(pthread_join(threads[t], 0) == 0);
    return finish("instructions");
}
