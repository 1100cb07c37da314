/*
 * A client that does to a framebuffer what no program should.
 *
 *   fb_hostile maps COUNT NODE    maps it COUNT times by one open file
 *   fb_hostile opens COUNT NODE   opens it COUNT times
 *   fb_hostile garbage SECONDS NODE  four threads, each with a file of its own,
 *                                 ask random ioctls with random arguments
 *   fb_hostile tear NODE          maps it, then tries to cut short and to punch
 *                                 holes into what was mapped
 *   fb_hostile holds NODE         maps it; after a line on stdin it reads and
 *                                 writes the mapping
 *
 * It says how often each call ended how, and but for `garbage' it then holds what
 * it has until its stdin ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const char *node;
static int seconds;

static int open_node(void)
{
	int fd = open(node, O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		perror(node);
		exit(1);
	}
	return fd;
}

static size_t length_of(int fd)
{
	struct fb_fix_screeninfo fix;

	if (ioctl(fd, FBIOGET_FSCREENINFO, &fix)) {
		perror("FBIOGET_FSCREENINFO");
		exit(1);
	}
	return fix.smem_len;
}

static void *map(int fd, size_t length)
{
	void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return p;
}

static void hold(void)
{
	char byte;

	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
}

static int maps(int count)
{
	int fd = open_node(), good = 0, last = 0;
	size_t length = length_of(fd);

	for (int i = 0; i < count; i++) {
		volatile char *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		if (p == MAP_FAILED) {
			last = errno;
			break;
		}
		p[i % length] = (char)i;
		good++;
	}
	printf("maps=%d then=%s\n", good, last ? strerrorname_np(last) : "-");
	hold();
	return 0;
}

static int opens(int count)
{
	int good = 0, last = 0;

	for (int i = 0; i < count; i++) {
		if (open(node, O_RDWR | O_CLOEXEC) < 0) {
			last = errno;
			break;
		}
		good++;
	}
	printf("opens=%d then=%s\n", good, last ? strerrorname_np(last) : "-");
	hold();
	return 0;
}

static void *ask(void *seed)
{
	/* Those of fbdev, some of their neighbours, and anything. */
	static const unsigned commands[] = {
		0x4600, 0x4601, 0x4602, 0x4604, 0x4605, 0x4606, 0x4607, 0x4608, 0x460f, 0x4610, 0x4611,
		0x4612, 0x4613, 0x4614, 0x4615, 0x4616, 0x4617, 0x4618, 0x4620, 0x80084621, 0xc0084621,
		0x40044620, 0x4f25, 0x4b3a, 0x5600, 0xc0086421,
	};
	unsigned state = (unsigned)(size_t)seed;
	time_t end = time(NULL) + seconds;
	long calls = 0;
	int fd = open_node();
	/* More than any struct of theirs has. */
	static __thread unsigned words[1024];

	while (time(NULL) < end) {
		unsigned command = rand_r(&state) % 8 ? commands[rand_r(&state) % (sizeof commands / sizeof *commands)] :
						       (unsigned)rand_r(&state) * 5;
		unsigned long argument = (unsigned long)words;

		for (size_t i = 0; i < 64; i++)
			words[i] = rand_r(&state) % 3 ? (unsigned)rand_r(&state) % 2048 : (unsigned)rand_r(&state) * 3;
		switch (rand_r(&state) % 4) {
		case 0:
			argument = (unsigned)rand_r(&state);
			break;
		case 1:
			argument = 0;
			break;
		}
		ioctl(fd, command, argument);
		calls++;
	}
	close(fd);
	return (void *)calls;
}

static int garbage(void)
{
	pthread_t threads[4];
	long calls = 0;

	for (size_t i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, ask, (void *)(i + 1)))
			return 1;
	for (size_t i = 0; i < 4; i++) {
		void *its;

		pthread_join(threads[i], &its);
		calls += (long)its;
	}
	printf("calls=%s\n", calls > 100 ? "many" : "few");
	return 0;
}

static const char *outcome(long result)
{
	return result < 0 ? strerrorname_np(errno) : "ok";
}

static int tear(void)
{
	int fd = open_node(), behind;
	size_t length = length_of(fd);
	char *p = map(fd, length), path[64];

	p[0] = 1;
	snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (unsigned long)p, (unsigned long)(p + length));
	behind = open(path, O_RDWR | O_CLOEXEC);
	printf("behind=%s", outcome(behind));
	if (behind >= 0) {
		printf(" truncate=%s", outcome(ftruncate(behind, 0)));
		printf(" grow=%s", outcome(ftruncate(behind, (off_t)length * 2)));
		printf(" punch=%s", outcome(fallocate(behind, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)length)));
		printf(" seal=%s", outcome(fcntl(behind, F_ADD_SEALS, F_SEAL_WRITE)));
	}
	printf(" remove=%s\n", outcome(madvise(p, length, MADV_REMOVE)));
	hold();
	return 0;
}

static sigjmp_buf jump;

static void on_bus(int signal)
{
	siglongjmp(jump, signal);
}

static int holds(void)
{
	int fd = open_node();
	size_t length = length_of(fd);
	volatile char *p = map(fd, length);
	char line[16];

	p[0] = 42;
	puts("mapped");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		return 1;
	signal(SIGBUS, on_bus);
	signal(SIGSEGV, on_bus);
	if (sigsetjmp(jump, 1)) {
		puts("SIGBUS");
	} else {
		p[length - 1] = 7;
		printf("%d %d\n", p[0], p[length - 1]);
	}
	hold();
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3) {
		node = argv[2];
		if (!strcmp(argv[1], "tear"))
			return tear();
		if (!strcmp(argv[1], "holds"))
			return holds();
	} else if (argc == 4) {
		node = argv[3];
		if (!strcmp(argv[1], "maps"))
			return maps(atoi(argv[2]));
		if (!strcmp(argv[1], "opens"))
			return opens(atoi(argv[2]));
		seconds = atoi(argv[2]);
		if (!strcmp(argv[1], "garbage"))
			return garbage();
	}
	fprintf(stderr, "usage: fb_hostile maps|opens|garbage COUNT NODE, fb_hostile tear|holds NODE\n");
	return 2;
}
