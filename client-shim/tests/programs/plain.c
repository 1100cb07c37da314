/*
 * Every function that the shim stands before, on files that are none of its
 * own: what comes of each call, and errno. It must say the same with and
 * without the shim.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 8
#define ROUNDS 2000

static char file[] = "/tmp/vidcompat-plain-XXXXXX";

/* `call`, with errno as it was before and as it is afterwards. */
#define SAY(call) \
	do { \
		errno = 4711; \
		long result_ = (long)(call); \
		printf("%s = %ld, errno %d\n", #call, result_, errno); \
	} while (0)

static int is_open(int fd)
{
	return fcntl(fd, F_GETFD) != -1;
}

static void ioctls(int fd, int null)
{
	struct v4l2_requestbuffers request = { .count = 1 };
	struct v4l2_buffer buffer = { 0 };
	struct v4l2_exportbuffer export = { 0 };
	int pipes[2], bytes = 0;

	if (pipe(pipes) || write(pipes[1], "12345", 5) != 5)
		exit(3);
	SAY(ioctl(pipes[0], FIONREAD, &bytes));
	SAY(bytes);
	SAY(syscall(SYS_ioctl, pipes[0], FIONREAD, &bytes));
	SAY(ioctl(pipes[0], FIONREAD, NULL));
	SAY(ioctl(fd, FIOCLEX));
	SAY(fcntl(fd, F_GETFD));
	SAY(ioctl(fd, FIONCLEX));
	SAY(ioctl(null, VIDIOC_REQBUFS, &request));
	SAY(ioctl(null, (int)VIDIOC_QBUF, &buffer));
	SAY(ioctl(fd, VIDIOC_EXPBUF, &export));
	SAY(ioctl(-1, VIDIOC_QBUF, &buffer));
	SAY(ioctl(1000, VIDIOC_QBUF, NULL));
	SAY(syscall(SYS_ioctl, null, VIDIOC_EXPBUF, &export));
	SAY(syscall(SYS_ioctl, -1, VIDIOC_QBUF, &buffer));
	close(pipes[0]);
	close(pipes[1]);
}

static void maps(int fd, int null)
{
	long page = sysconf(_SC_PAGESIZE);
	char *at = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *there;

	memset(at, 'a', 4 * page);
	there = mmap(at + page, page, PROT_READ, MAP_SHARED | MAP_FIXED, fd, page);
	SAY(there == at + page);
	SAY(at[page]);
	there = mmap64(at + page, 100, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
	SAY(there == at + page);
	SAY(at[page]);
	SAY(at[2 * page]);
	there = (char *)syscall(SYS_mmap, at, page, PROT_READ, MAP_SHARED | MAP_FIXED, fd, page);
	SAY(there == at);
	SAY(at[0]);
	there = (char *)syscall(SYS_mmap, at, page, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	SAY(there == at);
	SAY(at[0]);
	/* None of these may take anything away. */
	SAY(mmap(at + 2 * page, page, PROT_READ, MAP_SHARED | MAP_FIXED, -1, 0));
	SAY(mmap(at + 2 * page, page, PROT_READ, MAP_SHARED | MAP_FIXED, 1000, 0));
	SAY(mmap(at + 2 * page, page, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 1));
	SAY(mmap(at + 2 * page, 0, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	SAY(mmap(at + 2 * page, page, PROT_NONE, 0, fd, 0));
	SAY(mmap(at + 2 * page, page, PROT_READ, MAP_PRIVATE | MAP_FIXED, open("/", O_RDONLY), 0));
	SAY(mmap64(NULL, page, PROT_READ, MAP_SHARED, open("/proc/self/stat", O_RDONLY), 0));
	SAY(syscall(SYS_mmap, at + 2 * page, page, PROT_READ, MAP_SHARED | MAP_FIXED, 1000, 0));
	SAY(at[2 * page]);
	SAY(mmap(NULL, page, PROT_READ, MAP_SHARED, null, 0) != MAP_FAILED);
	munmap(at, 4 * page);
}

static void closes(int fd)
{
	SAY(dup2(fd, 100));
	SAY(dup3(fd, 101, O_CLOEXEC));
	SAY(fcntl(101, F_GETFD));
	SAY(dup3(fd, fd, 0));
	SAY(dup2(-1, 5));
	SAY(syscall(SYS_dup3, fd, 102, 0));
#ifdef SYS_dup2
	SAY(syscall(SYS_dup2, fd, 103));
#endif
	SAY(close(100));
	SAY(close(100));
	SAY(syscall(SYS_close, 101));
	SAY(syscall(SYS_close, 101));
	SAY(close_range(102, 102, 0));
	SAY(is_open(102));
	SAY(close_range(5, 4, 0));
	SAY(syscall(SYS_close_range, 103, 103, 0));
	SAY(is_open(103));
	SAY(dup2(fd, 200));
	closefrom(150);
	SAY(is_open(200));
	SAY(is_open(fd));
	SAY(syscall(SYS_getpid) == getpid());
	SAY(syscall(100000));
}

static void children(int fd)
{
	int status;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		SAY(dup2(fd, 77));
		SAY(close(77));
		fflush(stdout);
		_exit(3);
	}
	SAY(waitpid(child, &status, 0) == child);
	SAY(status);
	fflush(stdout);
	child = vfork();
	if (!child) {
		dup2(fd, 77);
		close(77);
		close_range(3, ~0u, 0);
		syscall(SYS_dup3, 1, 50, O_CLOEXEC);
		execl("/bin/echo", "echo", "a child of vfork", NULL);
		_exit(1);
	}
	SAY(waitpid(child, &status, 0) == child);
	SAY(status);
	SAY(is_open(fd));
	SAY(system("exec echo a shell"));
}

static volatile sig_atomic_t handled;

static void handler(int number)
{
	int before = errno, fd = dup2(1, 60);

	(void)number;
	close(fd);
	close(-1);
	handled++;
	errno = before;
}

static void *worker(void *argument)
{
	long sum = 0, page = sysconf(_SC_PAGESIZE);

	for (int i = 0; i < ROUNDS; i++) {
		int fd = open(file, O_RDONLY), bytes = 0;
		char *at = mmap(NULL, 2 * page, PROT_READ, MAP_SHARED, fd, 0);

		sum += at[0] + at[page];
		sum += ioctl(fd, FIONREAD, &bytes) + bytes;
		munmap(at, 2 * page);
		errno = 4711;
		sum += close(fd) + errno;
	}
	*(long *)argument = sum;
	return NULL;
}

static void threads(void)
{
	pthread_t ids[THREADS];
	long sums[THREADS];
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };

	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&ids[i], NULL, worker, &sums[i]);
	for (int i = 0; i < 200; i++)
		pthread_kill(ids[0], SIGUSR1);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(ids[i], NULL);
		SAY(sums[i]);
	}
	SAY(handled > 0);
}

static void cleanup(void *argument)
{
	*(int *)argument = 1;
}

static int cleaned;

/* close is a cancellation point: glibc unwinds from there. */
static void *cancelled(void *argument)
{
	pthread_cleanup_push(cleanup, &cleaned);
	pthread_cancel(pthread_self());
	close(*(int *)argument);
	printf("not cancelled\n");
	pthread_cleanup_pop(0);
	return NULL;
}

/* An ioctl that waits is none, but a thread can be made to be cancelled anywhere. */
static void *cancelled_anywhere(void *argument)
{
	pthread_cleanup_push(cleanup, &cleaned);
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	*(int *)argument = 1;
	for (;;)
		ioctl(-1, VIDIOC_DQBUF, NULL);
	pthread_cleanup_pop(0);
	return NULL;
}

static void cancels(void)
{
	pthread_t id;
	void *result;
	int fd = dup(0);
	volatile int begun = 0;

	pthread_create(&id, NULL, cancelled, &fd);
	pthread_join(id, &result);
	SAY(result == PTHREAD_CANCELED);
	SAY(cleaned);
	cleaned = 0;
	pthread_create(&id, NULL, cancelled_anywhere, (void *)&begun);
	while (!begun)
		usleep(1000);
	pthread_cancel(id);
	pthread_join(id, &result);
	SAY(result == PTHREAD_CANCELED);
	SAY(cleaned);
}

static void at_exit(void)
{
	SAY(close(dup2(1, 90)));
	SAY(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
}

int main(int argc, char **argv)
{
	int fd = mkstemp(file), null = open("/dev/zero", O_RDWR);
	long page = sysconf(_SC_PAGESIZE);
	char *contents = malloc(2 * page);

	memset(contents, 'b', page);
	memset(contents + page, 'c', page);
	if (fd == -1 || null == -1 || write(fd, contents, 2 * page) != 2 * page)
		return 2;
	free(contents);
	atexit(at_exit);
	ioctls(fd, null);
	maps(fd, null);
	closes(fd);
	/* Alone, its system calls can be compared. */
	if (argc < 2 || strcmp(argv[1], "calls")) {
		children(fd);
		threads();
		cancels();
	}
	unlink(file);
	return 7;
}
