/*
 * A capture program that sleeps in DQBUF for ever: it queues one buffer,
 * dequeues it, and asks for the next one without having queued any.
 *
 *   dqbuf_sleeper [-r|-e] DEVICE
 *     -r  SIGUSR1 has a handler that restarts system calls
 *     -e  SIGUSR1 has a handler that interrupts them
 *
 * Meanwhile another thread obeys letters on stdin: q queues the buffer, o
 * switches the stream off, d calls DQBUF too, n makes the file non-blocking.
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
#include <unistd.h>

static int fd;
static void *memory;
static size_t length;
static volatile sig_atomic_t handled;
/* Held while a letter is obeyed, so that the end of the program waits for it. */
static pthread_mutex_t obeying = PTHREAD_MUTEX_INITIALIZER;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

static const char *outcome(int result)
{
	return result < 0 ? strerrorname_np(errno) : "ok";
}

static struct v4l2_buffer buffer(void)
{
	return (struct v4l2_buffer){
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
		.m.userptr = (unsigned long)memory,
		.length = length,
	};
}

static int queue(void)
{
	struct v4l2_buffer b = buffer();

	return ioctl(fd, VIDIOC_QBUF, &b);
}

static int dequeue(void)
{
	struct v4l2_buffer b = buffer();

	return ioctl(fd, VIDIOC_DQBUF, &b);
}

static int stream(unsigned long request)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

	return ioctl(fd, request, &type);
}

static void must(const char *what, int result)
{
	if (result < 0) {
		printf("%s: %s\n", what, outcome(result));
		exit(2);
	}
}

static void *obey(void *unused)
{
	int letter;
	sigset_t all;

	/* Signals are for the thread that sleeps. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	while ((letter = getchar()) != EOF) {
		pthread_mutex_lock(&obeying);
		switch (letter) {
		case 'q':
			printf("QBUF: %s\n", outcome(queue()));
			break;
		case 'o':
			printf("STREAMOFF: %s\n", outcome(stream(VIDIOC_STREAMOFF)));
			break;
		case 'd':
			printf("second DQBUF: %s\n", outcome(dequeue()));
			break;
		case 'n':
			printf("O_NONBLOCK: %s\n", outcome(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK)));
			break;
		}
		pthread_mutex_unlock(&obeying);
	}
	return unused;
}

int main(int argc, char **argv)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_requestbuffers request = {
		.count = 2,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
	};
	struct sigaction action = { .sa_handler = handler };
	pthread_t thread;
	int option, result;

	while ((option = getopt(argc, argv, "re")) != -1) {
		action.sa_flags = option == 'r' ? SA_RESTART : 0;
		sigaction(SIGUSR1, &action, NULL);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);

	fd = open(argv[optind], O_RDWR);
	must("open", fd);
	must("G_FMT", ioctl(fd, VIDIOC_G_FMT, &format));
	length = format.fmt.pix.sizeimage;
	memory = malloc(length);
	must("REQBUFS", ioctl(fd, VIDIOC_REQBUFS, &request));
	must("QBUF", queue());
	must("STREAMON", stream(VIDIOC_STREAMON));
	must("DQBUF", dequeue());

	pthread_create(&thread, NULL, obey, NULL);
	puts("waiting");
	result = dequeue();
	printf("DQBUF: %s, handler ran %d times\n", outcome(result), (int)handled);
	pthread_mutex_lock(&obeying);
	return 0;
}
