// Threads, mutexes, condition variables, cancellation and a signal handler, with a checkable sum.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 8, ROUNDS = 10000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long sum;
static int finished;
static volatile sig_atomic_t signals;

static void on_signal(int number)
{
	(void)number;
	signals++;
}

static void *add(void *arg)
{
	for (int i = 0; i < ROUNDS; i++) {
		pthread_mutex_lock(&lock);
		sum += (long)arg;
		pthread_mutex_unlock(&lock);
	}
	pthread_mutex_lock(&lock);
	finished++;
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&lock);
	return arg;
}

static void *block(void *arg)
{
	char byte;
	int *fds = arg;
	if (read(fds[0], &byte, 1) < 0)
		perror("read");
	return NULL;
}

int main(void)
{
	struct sigaction action;
	memset(&action, 0, sizeof action);
	action.sa_handler = on_signal;
	sigaction(SIGUSR1, &action, NULL);

	pthread_t threads[THREADS];
	for (long i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, add, (void *)(i + 1)))
			return 1;
	pthread_mutex_lock(&lock);
	while (finished < THREADS)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	long returned = 0;
	for (int i = 0; i < THREADS; i++) {
		void *value;
		pthread_join(threads[i], &value);
		returned += (long)value;
	}

	int fds[2];
	if (pipe(fds))
		return 1;
	pthread_t blocked;
	void *result;
	if (pthread_create(&blocked, NULL, block, fds))
		return 1;
	usleep(20000);
	pthread_cancel(blocked);
	pthread_join(blocked, &result);

	for (int i = 0; i < 10; i++)
		raise(SIGUSR1);
	printf("sum %ld returned %ld cancelled %d signals %d\n", sum, returned,
	       result == PTHREAD_CANCELED, (int)signals);
	return 0;
}
