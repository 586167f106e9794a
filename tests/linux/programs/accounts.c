/* What the kernel tells of a process's account: user and system time, niceness of threads, load
 * averages, the namespaces it is in. */
#include "check.h"
#include <fcntl.h>
#include <linux/nsfs.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/times.h>

static int64_t microseconds(struct timeval time) {
    return time.tv_sec * 1000000LL + time.tv_usec;
}

static void compute(int64_t ms) {
    volatile unsigned sum = 0;
    for (int64_t end = now_ms() + ms; now_ms() < end;)
        for (int at = 0; at < 1000000; at++)
            sum += at;
}

/* The kernel works for us: names are looked up, directories made. */
static void call(int64_t ms) {
    struct stat status;
    for (int64_t end = now_ms() + ms; now_ms() < end;)
        for (int at = 0; at < 500; at++) {
            stat("/proc/self/status", &status);
            close(open("/tmp", O_RDONLY));
        }
}

static void in_child(void) {
    compute(150);
    call(150);
}

static void processor_time(void) {
    struct rusage before, between, after, children;
    struct tms start, end;
    times(&start);
    CHECK(getrusage(RUSAGE_SELF, &before) == 0);
    compute(300);
    CHECK(getrusage(RUSAGE_SELF, &between) == 0);
    int64_t user = microseconds(between.ru_utime) - microseconds(before.ru_utime);
    int64_t system = microseconds(between.ru_stime) - microseconds(before.ru_stime);
    CHECK(user > 10000 && user > 4 * system);
    call(300);
    CHECK(getrusage(RUSAGE_SELF, &after) == 0);
    system = microseconds(after.ru_stime) - microseconds(between.ru_stime);
    CHECK(system > 10000);
    times(&end);
    CHECK(end.tms_utime > start.tms_utime && end.tms_stime > start.tms_stime);
    CHECK(end.tms_cutime == start.tms_cutime && end.tms_cstime == start.tms_cstime);

    CHECK(apart(in_child) == 0);
    CHECK(getrusage(RUSAGE_CHILDREN, &children) == 0);
    CHECK(microseconds(children.ru_utime) > 5000 && microseconds(children.ru_stime) > 5000);
    times(&end);
    CHECK(end.tms_cutime > 0 && end.tms_cstime > 0);

    /* /proc says the same, in ticks. */
    char text[1024] = "";
    int fd = open("/proc/self/stat", O_RDONLY);
    CHECK(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    unsigned long u, s, cu, cs;
    char *rest = strrchr(text, ')');
    CHECK(rest && sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %lu %lu", &u, &s,
                         &cu, &cs) == 4);
    CHECK(u >= (unsigned long)end.tms_utime && s >= (unsigned long)end.tms_stime);
    CHECK(cu == (unsigned long)end.tms_cutime && cs == (unsigned long)end.tms_cstime);
    CHECK(getrusage(RUSAGE_THREAD, &after) == 0 && after.ru_stime.tv_usec + after.ru_stime.tv_sec > 0);
}

static int niceness(id_t who) {
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, who);
    CHECK(errno == 0);
    return nice;
}

static pthread_barrier_t barrier;
static pid_t thread_id;

static void *nicer(void *unused) {
    (void)unused;
    CHECK(niceness(0) == 3);
    CHECK(setpriority(PRIO_PROCESS, 0, 7) == 0);
    thread_id = syscall(SYS_gettid);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    CHECK(niceness(0) == 9);
    return NULL;
}

static void check_inherited(void) {
    CHECK(niceness(0) == 3);
}

/* Each thread has its own, and its children begin with it. */
static void nice_threads(void) {
    pthread_t thread;
    int start = niceness(0);
    CHECK(start <= 3);
    CHECK(setpriority(PRIO_PROCESS, 0, 3) == 0);
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    CHECK(pthread_create(&thread, NULL, nicer, NULL) == 0);
    pthread_barrier_wait(&barrier);
    CHECK(niceness(thread_id) == 7 && niceness(0) == 3 && niceness(getpid()) == 3);
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread_id);
    int fd = open(path, O_RDONLY);
    CHECK(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    int priority = 0, nice = 0;
    char *rest = strrchr(text, ')');
    CHECK(rest && sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*u %*u %d %d",
                         &priority, &nice) == 2);
    CHECK(priority == 27 && nice == 7);
    CHECK(setpriority(PRIO_PROCESS, thread_id, 9) == 0);
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    CHECK(apart(check_inherited) == 0);
    CHECK(setpriority(PRIO_PROCESS, 0, 99) == 0 && niceness(0) == 19);
    CHECK(getpriority(PRIO_PROCESS, 0x7ffffff) == -1 && errno == ESRCH);
}

/* Two busy processes for more than five seconds move the average. */
static void load(void) {
    double one = -1, five = -1, fifteen = -1;
    int running = 0, all = 0, last = 0;
    pid_t busy = fork();
    if (busy == 0) {
        compute(7000);
        _exit(0);
    }
    compute(7000);
    CHECK(waitpid(busy, NULL, 0) == busy);
    FILE *file = fopen("/proc/loadavg", "r");
    CHECK(file && fscanf(file, "%lf %lf %lf %d/%d %d", &one, &five, &fifteen, &running, &all, &last) == 6);
    if (file)
        fclose(file);
    CHECK(one >= 0.05 && one < 1000 && five > 0 && fifteen >= 0);
    CHECK(running >= 1 && all >= running && last > 0);
    struct sysinfo info;
    CHECK(sysinfo(&info) == 0);
    double again = info.loads[0] / 65536.0;
    CHECK(again > one * 0.7 - 0.05 && again < one * 1.4 + 0.5);
}

static void namespaces(void) {
    static const struct {
        const char *name, *kind;
        int flag;
    } all[] = {{"cgroup", "cgroup", CLONE_NEWCGROUP}, {"ipc", "ipc", CLONE_NEWIPC},
               {"mnt", "mnt", CLONE_NEWNS},           {"net", "net", CLONE_NEWNET},
               {"pid", "pid", CLONE_NEWPID},          {"pid_for_children", "pid", CLONE_NEWPID},
               {"user", "user", CLONE_NEWUSER},       {"uts", "uts", CLONE_NEWUTS}};
    for (size_t at = 0; at < sizeof all / sizeof all[0]; at++) {
        char path[64], link[64] = "", expected[64];
        struct stat status, parent;
        snprintf(path, sizeof path, "/proc/self/ns/%s", all[at].name);
        CHECK(readlink(path, link, sizeof link - 1) > 0);
        CHECK(stat(path, &status) == 0 && S_ISREG(status.st_mode));
        snprintf(expected, sizeof expected, "%s:[%lu]", all[at].kind, (unsigned long)status.st_ino);
        CHECK(strcmp(link, expected) == 0);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat opened;
        CHECK(fd >= 0 && fstat(fd, &opened) == 0);
        CHECK(opened.st_ino == status.st_ino && opened.st_dev == status.st_dev);
        CHECK(ioctl(fd, NS_GET_NSTYPE) == all[at].flag);
        int user = ioctl(fd, NS_GET_USERNS);
        if (all[at].flag == CLONE_NEWUSER)
            CHECK(user == -1 && errno == EPERM);
        else
            CHECK(user >= 0 && ioctl(user, NS_GET_NSTYPE) == CLONE_NEWUSER);
        close(user);
        close(fd);
        /* Another process of the container is in the same one. */
        snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)getppid(), all[at].name);
        if (getppid() > 1 && stat(path, &parent) == 0)
            CHECK(parent.st_ino == status.st_ino);
    }
    CHECK(open("/proc/self/ns/nosuch", O_RDONLY) == -1 && errno == ENOENT);
}

int main(void) {
    processor_time();
    CHECK(apart(nice_threads) == 0);
    namespaces();
    load();
    return finish("accounts");
}
