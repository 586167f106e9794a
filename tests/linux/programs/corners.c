/* Corners of files: unnamed files that stay so, access times of directories, mappings of files of /proc,
 * what an epoll descriptor says of itself, positions of objects without content, values that /proc/sys
 * refuses, ranges that are taken out and put in (an argument is a file on a disk that can). */
#include "check.h"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

static char place[] = "/tmp/corners-XXXXXX";

static int link_of(int file, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    return linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

static void unnamed(void) {
    int file = open(place, O_TMPFILE | O_RDWR | O_EXCL, 0600);
    CHECK(file >= 0 && write(file, "x", 1) == 1);
    CHECK(link_of(file, "never") == -1 && errno == ENOENT);
    CHECK(linkat(file, "", AT_FDCWD, "never", AT_EMPTY_PATH) == -1 && errno == ENOENT);
    close(file);
    file = open(place, O_TMPFILE | O_RDWR, 0600);
    CHECK(file >= 0 && link_of(file, "named") == 0);
    struct stat status;
    CHECK(fstat(file, &status) == 0 && status.st_nlink == 1);
    CHECK(unlink("named") == 0);
    CHECK(link_of(file, "again") == -1 && errno == ENOENT);
    close(file);
    file = open("gone", O_CREAT | O_RDWR, 0600);
    CHECK(unlink("gone") == 0 && link_of(file, "back") == -1 && errno == ENOENT);
    close(file);
}

static long accessed(const char *path) {
    struct stat status;
    CHECK(stat(path, &status) == 0);
    return status.st_atim.tv_sec;
}

static void read_directory(const char *path, int flags) {
    char entries[1024];
    int directory = open(path, O_RDONLY | O_DIRECTORY | flags);
    CHECK(directory >= 0 && syscall(SYS_getdents64, directory, entries, sizeof entries) > 0);
    close(directory);
}

static void access_times(void) {
    struct timespec old[2] = {{1000, 0}, {2000, 0}};
    CHECK(mkdir("dir", 0755) == 0 && utimensat(AT_FDCWD, "dir", old, 0) == 0);
    CHECK(accessed("dir") == 1000);
    read_directory("dir", O_NOATIME);
    CHECK(accessed("dir") == 1000);
    read_directory("dir", 0);
    CHECK(accessed("dir") > 2000);
    CHECK(symlink("dir", "link") == 0);
    CHECK(utimensat(AT_FDCWD, "link", old, AT_SYMLINK_NOFOLLOW) == 0);
    char target[8];
    struct stat status;
    CHECK(readlink("link", target, sizeof target) == 3);
    CHECK(lstat("link", &status) == 0 && status.st_atim.tv_sec > 2000);
}

static int mapping_error(const char *path) {
    int file = open(path, O_RDONLY);
    CHECK(file >= 0);
    void *at = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
    int error = at == MAP_FAILED ? errno : 0;
    if (!error) munmap(at, 4096);
    close(file);
    return error;
}

static void mappings(void) {
    static const char *refusing[] = {"/proc/self/status", "/proc/self/maps", "/proc/self/mem",
                                     "/proc/sys/kernel/hostname", "/sys/devices/system/cpu/online",
                                     "/proc/self", "."};
    for (size_t i = 0; i < sizeof refusing / sizeof *refusing; i++)
        CHECK(mapping_error(refusing[i]) == ENODEV);
    CHECK(mapping_error("/proc/meminfo") == EIO);
    CHECK(mapping_error("/proc/version") == EIO);
}

static void positions(void) {
    int ends[2];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(pipe(ends) == 0);
    int files[] = {eventfd(0, 0), epoll_create1(0), signalfd(-1, &set, 0),
                   timerfd_create(CLOCK_MONOTONIC, 0), inotify_init(), ends[0], ends[1]};
    char bytes[64];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (int whence = SEEK_SET; whence <= SEEK_HOLE; whence++) {
            off_t at = lseek(files[i], 5, whence);
            CHECK(i < 5 ? at == 0 : at == -1 && errno == ESPIPE);
        }
        CHECK(i == 6 || (pread(files[i], bytes, sizeof bytes, 0) == -1 && errno == ESPIPE));
        close(files[i]);
    }
}

static void information(int file, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", file);
    int info = open(path, O_RDONLY);
    ssize_t len = read(info, text, size - 1);
    CHECK(len > 0);
    text[len > 0 ? len : 0] = 0;
    close(info);
}

/* What an epoll instance watches, and for what. */
static void watched(void) {
    int epoll = epoll_create1(0), event = eventfd(7, 0), ends[2], fd;
    unsigned events;
    unsigned long long data;
    char text[2048];
    CHECK(pipe(ends) == 0);
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET, .data.u64 = 0x1234abcd};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &wanted) == 0);
    wanted.events = EPOLLOUT | EPOLLONESHOT;
    wanted.data.u64 = 5;
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == 0);
    for (int fired = 0; fired < 2; fired++) {
        int of_pipe = 0, of_event = 0;
        information(epoll, text, sizeof text);
        for (char *line = text; (line = strstr(line, "tfd:")); line++) {
            CHECK(sscanf(line, "tfd: %d events: %x data: %llx", &fd, &events, &data) == 3);
            if (fd == ends[0] && events == (EPOLLIN | EPOLLET | EPOLLERR | EPOLLHUP) && data == 0x1234abcd)
                of_pipe++;
            unsigned after = fired ? EPOLLONESHOT : EPOLLOUT | EPOLLONESHOT | EPOLLERR | EPOLLHUP;
            if (fd == event && events == after && data == 5) of_event++;
        }
        CHECK(of_pipe == 1 && of_event == 1);
        CHECK(epoll_wait(epoll, &wanted, 1, 0) == !fired);
    }
    close(epoll);
    close(event);
    close(ends[0]);
    close(ends[1]);
}

/* A tmpfs moves no ranges. Elsewhere it depends on the disk, so this runs where it is known. */
static void ranges(const char *path, int moves) {
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    char bytes[8192];
    CHECK(file >= 0 && unlink(path) == 0);
    for (int i = 0; i < 5; i++) {
        memset(bytes, 'a' + i, 4096);
        CHECK(write(file, bytes, 4096) == 4096);
    }
    CHECK(write(file, "end", 3) == 3);
    int result = fallocate(file, FALLOC_FL_COLLAPSE_RANGE, 4096, 8192);
    if (!moves) {
        CHECK(result == -1 && errno == EOPNOTSUPP);
        CHECK(fallocate(file, FALLOC_FL_INSERT_RANGE, 4096, 4096) == -1 && errno == EOPNOTSUPP);
        close(file);
        return;
    }
    char *shown = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(result == 0 && lseek(file, 0, SEEK_END) == 3 * 4096 + 3);
    CHECK(pread(file, bytes, 8192, 2048) == 8192 && bytes[0] == 'a' && bytes[2048] == 'd' && bytes[6144] == 'e');
    shown[4096] = 'D';
    CHECK(fallocate(file, FALLOC_FL_INSERT_RANGE, 4096, 4096) == 0);
    CHECK(lseek(file, 0, SEEK_END) == 4 * 4096 + 3);
    CHECK(pread(file, bytes, 8192, 4096) == 8192 && bytes[0] == 0 && bytes[4095] == 0);
    CHECK(bytes[4096] == 'D' && bytes[4097] == 'd' && shown[4096] == 0 && shown[8192] == 'D');
    CHECK(pread(file, bytes, 9, 4 * 4096) == 3 && memcmp(bytes, "end", 3) == 0);
    CHECK(fallocate(file, FALLOC_FL_COLLAPSE_RANGE, 100, 4096) == -1 && errno == EINVAL);
    CHECK(fallocate(file, FALLOC_FL_COLLAPSE_RANGE, 4 * 4096, 4096) == -1 && errno == EINVAL);
    CHECK(fallocate(file, FALLOC_FL_INSERT_RANGE, 5 * 4096, 4096) == -1 && errno == EINVAL);
    CHECK(lseek(file, 0, SEEK_END) == 4 * 4096 + 3);
    munmap(shown, 8 * 4096);
    close(file);
}

/* A setting takes a number as C writes it, and nothing that is none. The same value is written back. */
static void settings(void) {
    static const char path[] = "/proc/sys/vm/swappiness";
    static const char *refused[] = {"x", "60abc", "1000", "-1", "\n", "99999999999999999999", "0x"};
    char value[16] = {0}, text[40];
    int file = open(path, O_RDONLY);
    CHECK(file >= 0 && read(file, value, sizeof value - 1) > 0);
    close(file);
    int number = atoi(value);
    file = open(path, O_WRONLY);
    if (file < 0 && (errno == EROFS || errno == EACCES)) return;
    CHECK(file >= 0);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        CHECK(write(file, refused[i], strlen(refused[i])) == -1 && errno == EINVAL);
    CHECK(write(file, "", 0) == 0);
    static const char *forms[] = {"%d", " %d\n", "0x%x", "0%o"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        int len = snprintf(text, sizeof text, forms[i], number);
        CHECK(pwrite(file, text, len, 0) == len);
    }
    close(file);
    file = open(path, O_RDONLY);
    CHECK(read(file, text, sizeof text) > 0 && atoi(text) == number);
    close(file);
}

int main(int count, char **arguments) {
    CHECK(mkdtemp(place) && chdir(place) == 0);
    unnamed();
    access_times();
    mappings();
    positions();
    watched();
    settings();
    ranges("/dev/shm/corners", 0);
    if (count > 1) ranges(arguments[1], 1);
    CHECK(rmdir("dir") == 0 && unlink("link") == 0 && chdir("/") == 0 && rmdir(place) == 0);
    return finish("corners");
}
