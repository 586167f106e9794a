// Micro-benchmarks: `bench [NAME..]` prints one line per benchmark, "NAME NANOSECONDS OPERATIONS".
// Each is the median of several batches, so that one slow batch does not matter.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 7 };

static char **self;
static int zero, pipes[2];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void bench_getppid(void) { getppid(); }

static void bench_read(void)
{
	char byte;
	if (read(zero, &byte, 1) != 1)
		fail("read /dev/zero");
}

static void bench_open(void)
{
	int fd = open(self[0], O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("open");
	close(fd);
}

static void bench_stat(void)
{
	struct stat st;
	if (stat(self[0], &st))
		fail("stat");
}

static void bench_pipe(void)
{
	char bytes[64] = {0};
	if (write(pipes[1], bytes, sizeof bytes) != sizeof bytes ||
	    read(pipes[0], bytes, sizeof bytes) != sizeof bytes)
		fail("pipe");
}

static void bench_mmap(void)
{
	size_t len = 1 << 20;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap");
	for (size_t i = 0; i < len; i += 4096)
		p[i] = 1;
	munmap(p, len);
}

static void *nothing(void *arg) { return arg; }

static void bench_thread(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, nothing, NULL))
		fail("pthread_create");
	pthread_join(thread, NULL);
}

static void reap(pid_t pid)
{
	int status;
	if (waitpid(pid, &status, 0) != pid || status)
		fail("waitpid");
}

static void bench_fork(void)
{
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0)
		_exit(0);
	reap(pid);
}

static void bench_spawn(void)
{
	pid_t pid;
	char *argv[] = {self[0], "exit", NULL};
	if (posix_spawn(&pid, self[0], NULL, NULL, argv, environ))
		fail("posix_spawn");
	reap(pid);
}

static const struct {
	const char *name;
	void (*run)(void);
	int times;
} benches[] = {
	{"getppid", bench_getppid, 100000},
	{"read-zero", bench_read, 50000},
	{"open-close", bench_open, 10000},
	{"stat", bench_stat, 20000},
	{"pipe", bench_pipe, 20000},
	{"mmap-touch-1m", bench_mmap, 50},
	{"thread", bench_thread, 300},
	{"fork", bench_fork, 50},
	{"spawn", bench_spawn, 30},
};

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "exit"))
		return 0;
	self = argv;
	zero = open("/dev/zero", O_RDONLY);
	if (zero < 0)
		fail("/dev/zero");
	if (pipe(pipes))
		fail("pipe");
	for (size_t i = 0; i < sizeof benches / sizeof *benches; i++) {
		int wanted = argc == 1;
		for (int a = 1; a < argc; a++)
			wanted |= !strcmp(argv[a], benches[i].name);
		if (!wanted)
			continue;
		double results[BATCHES];
		for (int b = 0; b < BATCHES; b++) {
			double start = now();
			for (int n = 0; n < benches[i].times; n++)
				benches[i].run();
			results[b] = (now() - start) / benches[i].times;
		}
		qsort(results, BATCHES, sizeof *results, ascending);
		printf("%s %.1f %d\n", benches[i].name, results[BATCHES / 2],
		       BATCHES * benches[i].times);
		fflush(stdout);
	}
	return 0;
}
