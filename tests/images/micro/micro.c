// More micro-benchmarks, as bench.c: `micro [NAME..]` prints "NAME NANOSECONDS OPERATIONS" for each,
// the median of several batches. `micro memory` touches 64 MiB, says so and waits for its input to
// end.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 7, PIPE_BLOCK = 64 << 10, PIPE_BLOCKS = 256 };

static int event;
static int word;
static char block[PIPE_BLOCK];

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

static void bench_clock(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
}

// Past the vDSO.
static void bench_clock_call(void)
{
	struct timespec t;
	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
}

// Nobody waits, as in most wakes.
static void bench_futex(void) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

static void bench_eventfd(void)
{
	uint64_t one = 1;
	if (write(event, &one, sizeof one) != sizeof one || read(event, &one, sizeof one) != sizeof one)
		fail("eventfd");
}

static void reap(pid_t pid)
{
	int status;
	if (waitpid(pid, &status, 0) != pid || status)
		fail("waitpid");
}

// 16 MiB from one process to another.
static void bench_pipe(void)
{
	int ends[2];
	if (pipe(ends))
		fail("pipe");
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		close(ends[0]);
		for (int i = 0; i < PIPE_BLOCKS; i++)
			if (write(ends[1], block, PIPE_BLOCK) != PIPE_BLOCK)
				_exit(1);
		_exit(0);
	}
	close(ends[1]);
	size_t total = 0;
	ssize_t got;
	while ((got = read(ends[0], block, PIPE_BLOCK)) > 0)
		total += got;
	if (total != (size_t)PIPE_BLOCK * PIPE_BLOCKS)
		fail("pipe: short");
	close(ends[0]);
	reap(pid);
}

static char *touch(size_t len)
{
	char *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	memset(memory, 1, len);
	return memory;
}

// Of a process that has touched 10 MiB.
static void bench_fork(void)
{
	static char *memory;
	if (!memory)
		memory = touch(10 << 20);
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0)
		_exit(0);
	reap(pid);
}

static const struct {
	const char *name;
	void (*run)(void);
	int times;
} benches[] = {
	{"clock_gettime", bench_clock, 100000},
	{"clock-call", bench_clock_call, 100000},
	{"futex-wake", bench_futex, 100000},
	{"eventfd", bench_eventfd, 20000},
	{"pipe-16m", bench_pipe, 2},
	{"fork-10m", bench_fork, 20},
};

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "memory")) {
		touch(64 << 20);
		puts("touched");
		fflush(stdout);
		return getchar() == EOF ? 0 : 1;
	}
	event = eventfd(0, 0);
	if (event < 0)
		fail("eventfd");
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
