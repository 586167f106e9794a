/* The structures of nested.h, as they are when nothing is wrong with them. */
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <net/if.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <time.h>

/* Where in `good` things lie: the call's own structure at 0, what it points to behind. */
enum { INNER = 4096, DATA = 16384 };

static void word(int offset, long value) {
    memcpy(good + offset, &value, 8);
}

static void half(int offset, int value) {
    memcpy(good + offset, &value, 4);
}

/* Two vectors of 4 bytes each. */
static void fill_vectors_at(int at) {
    struct iovec vectors[2] = {{good + DATA, 4}, {good + DATA + 4096, 4}};
    memcpy(good + at, vectors, sizeof vectors);
}

static void fill_vectors(void) {
    lseek(FILE_FD, 0, SEEK_SET);
    fill_vectors_at(0);
    fill_vectors_at(INNER);
    handle = getpid();
}

/* A message with vectors, and with a descriptor if it has a control message. */
static void fill_message_at(int at) {
    struct msghdr message = {.msg_iov = (struct iovec *)(good + INNER), .msg_iovlen = 2};
    fill_vectors_at(INNER);
    memcpy(good + at, &message, sizeof message);
}

static void fill_message(void) {
    fill_message_at(0);
}

static void fill_rights(void) {
    struct msghdr message = {.msg_iov = (struct iovec *)(good + INNER),
                             .msg_iovlen = 2,
                             .msg_control = good + 2 * INNER,
                             .msg_controllen = CMSG_SPACE(sizeof(int))};
    struct cmsghdr control = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    fill_vectors_at(INNER);
    memcpy(good, &message, sizeof message);
    memcpy(good + 2 * INNER, &control, sizeof control);
    half(2 * INNER + sizeof control, NULL_FD);
}

static void fill_address(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fill_message();
    memcpy(good + DATA + 8192, &to, sizeof to);
    word(offsetof(struct msghdr, msg_name), (long)(good + DATA + 8192));
    half(offsetof(struct msghdr, msg_namelen), sizeof to);
}

static void fill_filter(void) {
    struct sock_filter program[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    memcpy(good + INNER, program, sizeof program);
    half(0, 1);
    word(8, (long)(good + INNER));
}

static void fill_length(void) {
    half(0, 16);
}

static void fill_words(void) {
    chmod("file", 0755);
    word(0, (long)(good + DATA));
    word(8, (long)(good + DATA + 64));
}

static void fill_waiters(void) {
    for (int i = 0; i < 2; i++) {
        word(i * 24, 1);
        word(i * 24 + 8, (long)(good + INNER + i * 4));
        half(i * 24 + 16, 2);
    }
}

/* Pointers for CLONE_PIDFD, CLONE_PARENT_SETTID, CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID. */
static void fill_clone(void) {
    signal(SIGCHLD, SIG_IGN);
    word(0, 0x1000 | 0x100000 | 0x1000000 | 0x200000);
    word(8, (long)(good + INNER));
    word(16, (long)(good + INNER + 64));
    word(24, (long)(good + INNER + 128));
    word(32, SIGCHLD);
}

static void fill_iocb_with(int operation) {
    /* A new one each time: the events of earlier cases fill it. */
    static long context;
    syscall(SYS_io_destroy, context);
    context = 0;
    if (syscall(SYS_io_setup, 16, &context))
        exit(99);
    struct iocb request = {.aio_lio_opcode = operation,
                           .aio_fildes = FILE_FD,
                           .aio_buf = (uintptr_t)(good + DATA),
                           .aio_nbytes = 16};
    if (operation == IOCB_CMD_PREADV) {
        fill_vectors_at(DATA);
        request.aio_nbytes = 2;
    }
    memcpy(good + INNER, &request, sizeof request);
    word(0, (long)(good + INNER));
    word(8, (long)(good + INNER));
    handle = context;
}

static void fill_iocb(void) {
    fill_iocb_with(IOCB_CMD_PREAD);
}

static void fill_iocb_vectors(void) {
    fill_iocb_with(IOCB_CMD_PREADV);
}

static void fill_semaphores(void) {
    static int set = -1;
    if (set < 0)
        set = semget(IPC_PRIVATE, 4, 0600);
    struct sembuf operations[2] = {{0, 1, IPC_NOWAIT}, {1, 1, IPC_NOWAIT}};
    memcpy(good, operations, sizeof operations);
    handle = set;
}

static void fill_queue(void) {
    static int queue = -1;
    if (queue < 0)
        queue = msgget(IPC_PRIVATE, 0600);
    word(0, 1);
    handle = queue;
}

static void fill_posix_queue(void) {
    static mqd_t queue = -1;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    if (queue < 0)
        queue = mq_open("/swept", O_RDWR | O_CREAT | O_NONBLOCK, 0600, NULL);
    mq_notify(queue, NULL);
    memcpy(good, &event, sizeof event);
    handle = queue;
}

static void fill_event(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    memcpy(good, &event, sizeof event);
}

static void fill_mask(void) {
    word(0, (long)(good + INNER));
    word(8, 8);
}

static void fill_lock(void) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
    memcpy(good, &lock, sizeof lock);
}

static void fill_stack(void) {
    stack_t stack = {.ss_sp = good + DATA, .ss_size = 16384};
    memcpy(good, &stack, sizeof stack);
}

static void fill_poll(void) {
    struct pollfd files[2] = {{PIPE_R, POLLIN, 0}, {SOCK_A, POLLIN, 0}};
    memcpy(good, files, sizeof files);
}

static void fill_capabilities(void) {
    half(0, _LINUX_CAPABILITY_VERSION_3);
}

static void fill_interfaces(void) {
    struct ifconf all = {.ifc_len = 4 * sizeof(struct ifreq)};
    all.ifc_buf = good + DATA;
    memcpy(good, &all, sizeof all);
}

static void fill_robust(void) {
    word(0, (long)good);
    word(8, 32);
}

/* A process that ends with this robust list. */
static long end_with_list(void) {
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        if (syscall(SYS_set_robust_list, good, 24))
            _exit(1);
        _exit(0);
    }
    waitpid(child, &status, 0);
    errno = status;
    return status ? -1 : 0;
}
