// Calls of every kind, between two markers, for comparing traces. One thread, nothing random.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void handler(int s) { (void)s; }

int main(void) {
    // What the caller left open.
    close_range(3, ~0u, 0);
    write(1, "begin\n", 6);
    char buffer[100];
    struct stat st;
    int fd = open("/tmp/traced-missing", O_RDONLY | O_CLOEXEC);
    fd = openat(AT_FDCWD, "/tmp/traced", O_RDWR | O_CREAT | O_TRUNC, 0644);
    write(fd, "tab\tquote\"\\ \001\0012 and more than thirty-two characters", 52);
    pread(fd, buffer, 10, 4);
    lseek(fd, -5, SEEK_END);
    read(fd, buffer, 100);
    read(fd, buffer, 100);
    fstat(fd, &st);
    fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_GETFD);
    fcntl(fd, F_DUPFD_CLOEXEC, 20);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 2};
    fcntl(fd, F_SETLK, &lock);
    dup2(fd, 30);
    ftruncate(fd, 7);
    struct winsize window;
    ioctl(fd, TIOCGWINSZ, &window);
    struct iovec vector[2] = {{"one", 3}, {"two", 3}};
    writev(fd, vector, 2);
    close(fd);
    close(99);
    access("/tmp/traced", R_OK | W_OK);
    access("/tmp/traced-missing", F_OK);
    chmod("/tmp/traced", 0600);
    rename("/tmp/traced", "/tmp/traced2");
    unlink("/tmp/traced2");
    mkdir("/tmp/traced-d", 0755);
    rmdir("/tmp/traced-d");
    umask(022);
    stat("/dev/null", &st);

    int pair[2];
    pipe2(pair, O_CLOEXEC | O_NONBLOCK);
    read(pair[0], buffer, 1);
    struct pollfd set[2] = {{pair[0], POLLIN, 0}, {pair[1], POLLOUT | POLLIN, 0}};
    poll(set, 2, 100);
    poll(set, 1, 1);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 77};
    epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);
    write(pair[1], "x", 1);
    epoll_wait(epoll, &event, 1, 100);
    eventfd(3, EFD_NONBLOCK);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec setting = {{0, 0}, {5, 500}};
    timerfd_settime(timer, 0, &setting, NULL);

    int sockets[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets);
    send(sockets[0], "hello", 5, MSG_NOSIGNAL);
    recv(sockets[1], buffer, 100, MSG_PEEK | MSG_DONTWAIT);
    shutdown(sockets[0], SHUT_WR);
    int server = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), one = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
    address.sin_addr.s_addr = htonl(0x7f000001);
    connect(server, (struct sockaddr *)&address, sizeof address);
    struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = "/tmp/traced-s"};
    bind(socket(AF_UNIX, SOCK_DGRAM, 0), (struct sockaddr *)&path, sizeof path);
    unlink("/tmp/traced-s");

    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &action, NULL);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    sigprocmask(SIG_SETMASK, NULL, &mask);
    syscall(SYS_sched_yield);
    void *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(memory, 4096, PROT_NONE);
    madvise(memory, 8192, MADV_DONTNEED);
    munmap(memory, 8192);
    struct timespec time = {0, 1000000};
    nanosleep(&time, NULL);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
    struct rlimit limit = {0, 65536};
    setrlimit(RLIMIT_CORE, &limit);
    int word = 1;
    syscall(SYS_futex, &word, 129, 1);
    syscall(SYS_futex, &word, 128, 2, NULL);
    wait4(-1, NULL, WNOHANG, NULL);
    getpriority(PRIO_PROCESS, 0);
    getuid();
    int *nothing = NULL;
    syscall(SYS_write, 1, nothing, 5);
    syscall(SYS_openat, AT_FDCWD, (char *)8, 0);
    write(1, "end\n", 4);
    return 7;
}
