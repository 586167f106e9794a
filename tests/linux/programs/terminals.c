/* The line discipline of a pseudo-terminal: editing, flow control, raw reads with time-outs,
   packet mode. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

static int master, slave;
static struct termios initial;

static void fresh(void) {
    CHECK(openpty(&master, &slave, NULL, NULL, NULL) == 0);
    CHECK(tcgetattr(slave, &initial) == 0);
    CHECK(fcntl(master, F_SETFL, O_NONBLOCK) == 0);
    CHECK(fcntl(slave, F_SETFL, O_NONBLOCK) == 0);
}

static void done(void) {
    close(master);
    close(slave);
}

static void set(struct termios *termios) {
    CHECK(tcsetattr(slave, TCSANOW, termios) == 0);
}

/* Whether a read gives these bytes; NULL: nothing. The driver may be behind for a moment. */
static void reads(int line, int fd, const char *expected, size_t len) {
    char found[256];
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    size_t have = 0;
    if (expected == NULL) {
        ssize_t got = read(fd, found, sizeof found);
        if (got != -1 || errno != EAGAIN) {
            printf("FAIL line %d: read gives %zd\n", line, got);
            failures++;
        }
        return;
    }
    while (have < len && poll(&wait, 1, 2000) == 1) {
        ssize_t got = read(fd, found + have, sizeof found - have);
        if (got <= 0)
            break;
        have += got;
    }
    if (have != len || memcmp(found, expected, len) != 0) {
        printf("FAIL line %d:", line);
        for (size_t at = 0; at < have; at++)
            printf(" %02x", (unsigned char)found[at]);
        printf(" instead of %zu bytes\n", len);
        failures++;
    }
}
#define READS(fd, text) reads(__LINE__, fd, text, sizeof text - 1)
#define READS_NOTHING(fd) reads(__LINE__, fd, NULL, 0)
#define TYPE(text) CHECK(write(master, text, sizeof text - 1) == sizeof text - 1)
#define PRINT(text) CHECK(write(slave, text, sizeof text - 1) == sizeof text - 1)

static void editing(void) {
    fresh();
    TYPE("ab\x7f" "c\n");
    READS(master, "ab\b \bc\r\n");
    READS(slave, "ac\n");
    /* A word is letters and digits, with what follows it. */
    TYPE("one two-three  \x17x\n");
    READS(master, "one two-three  \b \b\b \b\b \b\b \b\b \b\b \b\b \bx\r\n");
    READS(slave, "one two-x\n");
    /* A tab goes back as far as it went, a control character takes two places. */
    TYPE("a\t\x7f\x01\x7f\n");
    READS(master, "a\t\b\b\b\b\b\b\b^A\b \b\b \b\r\n");
    READS(slave, "a\n");
    /* VLNEXT takes the next character as it is; VREPRINT shows the line again. */
    TYPE("\x16\x03q\x12\n");
    READS(master, "^\b^Cq^R\r\n^Cq\r\n");
    READS(slave, "\x03q\n");
    /* A byte goes where UTF-8 is not asked for, else the whole character. */
    struct termios termios = initial;
    TYPE("u\xc3\xa9\x7f\n");
    READS(slave, "u\xc3\n");
    termios.c_iflag |= IUTF8;
    set(&termios);
    TYPE("u\xc3\xa9\x7f\n");
    READS(slave, "u\n");
    READS(master, "u\xc3\xa9\b \b\r\nu\xc3\xa9\b \b\r\n");
    /* All complete lines count. */
    int readable = 0;
    TYPE("one\ntwo\nthr");
    READS(master, "one\r\ntwo\r\nthr");
    CHECK(ioctl(slave, FIONREAD, &readable) == 0 && readable == 8);
    CHECK(tcflush(slave, TCIFLUSH) == 0);
    termios = initial;
    termios.c_cc[VEOL] = '!';
    termios.c_cc[VEOL2] = '?';
    set(&termios);
    TYPE("a!b?");
    READS(master, "a!b?");
    READS(slave, "a!");
    READS(slave, "b?");
    termios = initial;
    termios.c_lflag |= ECHOPRT;
    termios.c_lflag &= ~ECHOKE;
    set(&termios);
    TYPE("ab\x7f\x7f" "c\x15z\n");
    READS(master, "ab\\ba/c^U\r\nz\r\n");
    READS(slave, "z\n");
    termios = initial;
    termios.c_iflag |= IUCLC;
    set(&termios);
    TYPE("AbC\n");
    READS(master, "abc\r\n");
    READS(slave, "abc\n");
    done();
}

static void output(void) {
    fresh();
    struct termios termios = initial;
    termios.c_oflag = OPOST | OLCUC | XTABS;
    set(&termios);
    PRINT("up\tx\n");
    READS(master, "UP      X\n");
    PRINT("\r");
    READS(master, "\r");
    termios.c_oflag = OPOST | OCRNL | ONOCR;
    set(&termios);
    PRINT("\ra\rb");
    READS(master, "a\nb");
    termios.c_oflag = OPOST | ONLCR | ONLRET;
    set(&termios);
    PRINT("a\nb");
    READS(master, "a\r\nb");
    termios.c_oflag = 0;
    set(&termios);
    PRINT("a\nb\t");
    READS(master, "a\nb\t");
    done();
}

/* Waits until the slave may be written to, or may not. */
static void becomes(short events) {
    struct pollfd wait = {.fd = slave, .events = POLLOUT};
    for (int tries = 0; tries < 2000; tries++) {
        poll(&wait, 1, 0);
        if (wait.revents == events)
            return;
        usleep(1000);
    }
    printf("FAIL the slave does not become %s\n", events ? "writable" : "stopped");
    failures++;
}

static void flow(void) {
    fresh();
    becomes(POLLOUT);
    TYPE("a");
    READS(master, "a");
    TYPE("\x13");
    becomes(0);
    CHECK(write(slave, "later", 5) == -1 && errno == EAGAIN);
    TYPE("b\x11");
    READS(master, "b");
    becomes(POLLOUT);
    PRINT("now");
    READS(master, "now");
    /* A signal character lets the output go on too. */
    TYPE("\x13\x1c");
    READS(master, "^\\");
    PRINT("on");
    READS(master, "on");
    struct termios termios = initial;
    termios.c_iflag |= IXANY;
    set(&termios);
    TYPE("\x13z");
    READS(master, "z");
    PRINT("any");
    READS(master, "any");
    TYPE("\x13");
    becomes(0);
    termios.c_iflag &= ~IXON;
    set(&termios);
    PRINT("off");
    READS(master, "off");
    TYPE("\x13\n");
    READS(master, "^S\r\n");
    set(&initial);
    /* tcflow stops what VSTART does not start. */
    CHECK(tcflow(slave, TCOOFF) == 0);
    TYPE("\x11");
    CHECK(write(slave, "x", 1) == -1 && errno == EAGAIN);
    CHECK(tcflow(slave, TCOON) == 0);
    PRINT("x");
    READS(master, "x");
    CHECK(tcflow(slave, TCIOFF) == 0 && tcflow(slave, TCION) == 0);
    READS(master, "\x13\x11");
    CHECK(tcflow(slave, 9) == -1 && errno == EINVAL);
    CHECK(tcflush(slave, 9) == -1 && errno == EINVAL);
    CHECK(tcflush(slave, TCIOFLUSH) == 0);
    done();
}

static void raw(void) {
    char buffer[16];
    fresh();
    struct termios termios = initial;
    cfmakeraw(&termios);
    termios.c_cc[VMIN] = 0;
    termios.c_cc[VTIME] = 0;
    set(&termios);
    CHECK(read(slave, buffer, sizeof buffer) == 0);
    CHECK(fcntl(slave, F_SETFL, 0) == 0);
    CHECK(read(slave, buffer, sizeof buffer) == 0);
    TYPE("xy");
    READS(slave, "xy");
    /* Without a minimum the time runs from the start. */
    termios.c_cc[VTIME] = 2;
    set(&termios);
    int64_t start = now_ms();
    CHECK(read(slave, buffer, sizeof buffer) == 0);
    CHECK(now_ms() - start >= 150);
    /* With one it runs from each byte, and a read that is full ends. */
    termios.c_cc[VMIN] = 3;
    set(&termios);
    TYPE("q");
    CHECK(read(slave, buffer, sizeof buffer) == 1 && buffer[0] == 'q');
    TYPE("12345");
    CHECK(read(slave, buffer, 2) == 2);
    CHECK(read(slave, buffer, sizeof buffer) == 3);
    termios.c_cc[VMIN] = 5;
    termios.c_cc[VTIME] = 0;
    set(&termios);
    struct pollfd readable = {.fd = slave, .events = POLLIN};
    TYPE("abc");
    CHECK(poll(&readable, 1, 100) == 0);
    TYPE("de");
    CHECK(poll(&readable, 1, 2000) == 1);
    CHECK(read(slave, buffer, sizeof buffer) == 5);
    /* A read that blocks gets what another process types. */
    pid_t child = fork();
    if (child == 0) {
        usleep(20000);
        TYPE("vwx");
        usleep(20000);
        TYPE("yz");
        _exit(0);
    }
    CHECK(read(slave, buffer, sizeof buffer) == 5 && memcmp(buffer, "vwxyz", 5) == 0);
    waitpid(child, NULL, 0);
    done();
}

static volatile sig_atomic_t signals;

static void count(int signal) {
    (void)signal;
    signals++;
}

/* What controls a session. */
static void session(void) {
    fresh();
    signal(SIGINT, count);
    CHECK(setsid() == getpid());
    CHECK(ioctl(slave, TIOCSCTTY, 0) == 0);
    CHECK(tcgetpgrp(slave) == getpid());
    CHECK(tcsetpgrp(slave, 4000000) == -1 && errno == ESRCH);
    CHECK(tcsetpgrp(slave, getppid()) == -1 && errno == EPERM);
    CHECK(ioctl(master, TIOCSIG, SIGINT) == 0);
    for (int tries = 0; tries < 1000 && signals == 0; tries++)
        usleep(1000);
    CHECK(signals == 1);
    CHECK(ioctl(master, TIOCSIG, 99) == -1 && errno == EINVAL);
    int discipline = -1;
    CHECK(ioctl(slave, TIOCGETD, &discipline) == 0 && discipline == 0);
    CHECK(ioctl(slave, TIOCSETD, &discipline) == 0);
    /* struct termios2: the speeds come last. */
    uint32_t words[11] = {0};
    CHECK(ioctl(slave, 0x802c542a, words) == 0 && words[9] == 38400 && words[10] == 38400);
    CHECK(ioctl(slave, 0x402c542b, words) == 0);
}

/* The end of a session's leader is told to the group in the foreground. */
static void leader(void) {
    int gone[2], told[2];
    fresh();
    CHECK(pipe(gone) == 0 && pipe(told) == 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0);
        sigset_t wanted;
        sigemptyset(&wanted);
        sigaddset(&wanted, SIGHUP);
        sigprocmask(SIG_BLOCK, &wanted, NULL);
        if (fork() == 0) {
            int signal = 0;
            close(gone[1]);
            CHECK(write(told[1], "r", 1) == 1);
            CHECK(sigwait(&wanted, &signal) == 0 && signal == SIGHUP);
            /* The terminal is nobody's, but it is there. */
            CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
            CHECK(write(slave, "on", 2) == 2);
            CHECK(write(told[1], failures ? "f" : "o", 1) == 1);
            _exit(0);
        }
        char byte;
        CHECK(read(told[0], &byte, 1) == 1);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    char byte = 0;
    CHECK(read(told[0], &byte, 1) == 1 && byte == 'o');
    READS(master, "on");
    done();
}

static void packets(void) {
    fresh();
    int on = 1, is = 0;
    CHECK(ioctl(master, TIOCPKT, &on) == 0);
    CHECK(ioctl(master, TIOCGPKT, &is) == 0 && is == 1);
    PRINT("data");
    READS(master, "\0data");
    CHECK(tcflush(slave, TCIFLUSH) == 0);
    struct pollfd wait = {.fd = master, .events = POLLIN | POLLPRI};
    CHECK(poll(&wait, 1, 2000) == 1 && wait.revents == (POLLIN | POLLPRI));
    READS(master, "\x01");
    CHECK(tcflush(slave, TCOFLUSH) == 0);
    READS(master, "\x02");
    CHECK(tcflow(slave, TCOOFF) == 0);
    READS(master, "\x04");
    CHECK(tcflow(slave, TCOON) == 0);
    READS(master, "\x08");
    struct termios termios = initial;
    termios.c_iflag &= ~IXON;
    set(&termios);
    READS(master, "\x10");
    termios.c_iflag |= IXON;
    set(&termios);
    READS(master, "\x20");
    set(&termios);
    READS_NOTHING(master);
    on = 0;
    CHECK(ioctl(master, TIOCPKT, &on) == 0);
    PRINT("plain");
    READS(master, "plain");
    done();
}

/* The master processes what is typed: no lines, no echo, no signals. */
static void external(void) {
    fresh();
    struct termios termios = initial;
    termios.c_lflag |= EXTPROC;
    set(&termios);
    TYPE("ab\x03");
    /* Linux hands it over in the background. */
    int len = 0;
    for (int tries = 0; tries < 1000 && len < 3; tries++) {
        CHECK(ioctl(slave, FIONREAD, &len) == 0);
        usleep(1000);
    }
    CHECK(len == 3);
    READS(slave, "ab\x03");
    TYPE("c\nd");
    READS(slave, "c\nd");
    READS_NOTHING(master);
    done();
}

int main(void) {
    alarm(60);
    external();
    editing();
    output();
    flow();
    raw();
    packets();
    CHECK(apart(session) == 0);
    leader();
    return finish("terminals");
}
