/*
 * A program that sleeps in read(2) for a frame, and says what came of it.
 *
 *   reader [-r|-e] DEVICE
 *     -r  SIGUSR1 has a handler that restarts system calls
 *     -e  SIGUSR1 has a handler that interrupts them
 *
 * It asks for a frame and a byte.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static volatile sig_atomic_t handled;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

int main(int argc, char **argv)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct sigaction action = { .sa_handler = handler };
	int option, fd;
	size_t size;
	ssize_t got;
	char *memory;

	while ((option = getopt(argc, argv, "re")) != -1) {
		action.sa_flags = option == 'r' ? SA_RESTART : 0;
		sigaction(SIGUSR1, &action, NULL);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);

	fd = open(argv[optind], O_RDWR);
	if (fd < 0 || ioctl(fd, VIDIOC_G_FMT, &format) < 0) {
		perror(argv[optind]);
		return 2;
	}
	size = format.fmt.pix.sizeimage + 1;
	memory = malloc(size);
	/* The first frame comes at once. */
	read(fd, memory, size);
	puts("waiting");
	got = read(fd, memory, size);
	printf("read: %s, handler ran %d times\n",
	       got < 0 ? strerrorname_np(errno) : got == (ssize_t)size - 1 ? "a frame" : "something else",
	       (int)handled);
	return 0;
}
