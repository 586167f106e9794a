/* What a system call leaves alone: all registers but rax, rcx and r11, every flag, the vector registers. */
#include "check.h"

struct state {
    uint64_t flags, rax, rcx, rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip;
    uint8_t xmm[16][16];
};
static struct state before, after;

/* getppid with everything set, at one site, so that it is rewritten on the way. */
void call_with(void);
__asm__(".text\n.globl call_with\n.p2align 6\ncall_with:\n"
        "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\npushfq\n"
        ".irp k, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovups before+136+16*\\k(%rip), %xmm\\k\n.endr\n"
        "mov before+24(%rip), %rbx\nmov before+32(%rip), %rdx\nmov before+40(%rip), %rsi\n"
        "mov before+48(%rip), %rdi\nmov before+56(%rip), %rbp\nmov before+64(%rip), %r8\n"
        "mov before+72(%rip), %r9\nmov before+80(%rip), %r10\nmov before+96(%rip), %r12\n"
        "mov before+104(%rip), %r13\nmov before+112(%rip), %r14\nmov before+120(%rip), %r15\n"
        "pushq before(%rip)\npopfq\n"
        "mov $110, %eax\nsyscall\n1:\n"
        "mov %rcx, after+16(%rip)\nmov %r11, after+88(%rip)\npushfq\npopq after(%rip)\npushq $2\npopfq\n"
        "mov %rax, after+8(%rip)\nlea 1b(%rip), %rax\nmov %rax, after+128(%rip)\n"
        "mov %rbx, after+24(%rip)\nmov %rdx, after+32(%rip)\nmov %rsi, after+40(%rip)\n"
        "mov %rdi, after+48(%rip)\nmov %rbp, after+56(%rip)\nmov %r8, after+64(%rip)\n"
        "mov %r9, after+72(%rip)\nmov %r10, after+80(%rip)\nmov %r12, after+96(%rip)\n"
        "mov %r13, after+104(%rip)\nmov %r14, after+112(%rip)\nmov %r15, after+120(%rip)\n"
        ".irp k, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovups %xmm\\k, after+136+16*\\k(%rip)\n.endr\n"
        "popfq\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n");

int main(void) {
    enum { CF = 1, PF = 4, AF = 0x10, ZF = 0x40, SF = 0x80, DF = 0x400, OF = 0x800, AC = 0x40000, ID = 0x200000 };
    const uint64_t kinds[] = {CF, PF, AF, ZF, SF, OF, DF, AC, ID};
    uint64_t parent = getppid();
    /* Every combination, and after it the one before it reversed: nothing of one stays for the next. */
    for (int round = 0; round < 2; round++)
        for (unsigned mask = 0; mask < 512; mask++) {
            unsigned wanted = round ? 511 - mask : mask;
            uint64_t *word = &before.rbx;
            for (int i = 0; i < 13; i++) word[i] = 0x1234567890abcdefull * (i + 1) + mask;
            for (int i = 0; i < 256; i++) before.xmm[i / 16][i % 16] = i * 7 + mask;
            before.flags = 0x202;
            for (int k = 0; k < 9; k++) if (wanted >> k & 1) before.flags |= kinds[k];
            call_with();
            int same = after.flags == before.flags && after.r11 == before.flags && after.rcx == after.rip;
            after.r11 = before.r11;
            CHECK(same && after.rax == parent && !memcmp(&after.rbx, &before.rbx, 13 * 8)
                  && !memcmp(after.xmm, before.xmm, sizeof after.xmm));
            if (failures) {
                printf("flags %lx became %lx\n", (long)before.flags, (long)after.flags);
                return finish("flags");
            }
        }
    return finish("flags");
}
