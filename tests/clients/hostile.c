/*
 * A client that asks for as much as it can get.
 *
 *   hostile files COUNT DEVICE    opens the device COUNT times; each file
 *                                 reads a byte and then asks for 64 buffers
 *   hostile buffers COUNT DEVICE  the same without reading
 *   hostile sleepers COUNT DEVICE COUNT threads, each with a file of its own,
 *                                 sleep in DQEVENT
 *
 * It says how often each call ended how, and then holds what it has until its
 * stdin ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define ERRNOS 134

static const char *device;

/* How often a call ended how: by errno, 0 for success. */
struct tally {
	const char *call;
	int times[ERRNOS];
};

static int count(struct tally *tally, int result)
{
	tally->times[result < 0 && errno < ERRNOS ? errno : 0]++;
	return result;
}

static void report(const struct tally *tally)
{
	printf("%s:", tally->call);
	for (int error = 0; error < ERRNOS; error++) {
		if (tally->times[error])
			printf(" %d %s", tally->times[error], error ? strerrorname_np(error) : "ok");
	}
	putchar('\n');
}

static void *sleeper(void *unused)
{
	struct v4l2_event event;
	int fd = open(device, O_RDWR);

	ioctl(fd, VIDIOC_DQEVENT, &event);
	return unused;
}

int main(int argc, char **argv)
{
	struct tally opens = { .call = "open" }, reads = { .call = "read" };
	struct tally requests = { .call = "REQBUFS" }, creations = { .call = "CREATE_BUFS" };
	int buffers = 0, files;

	if (argc != 4)
		return 2;
	files = atoi(argv[2]);
	device = argv[3];
	setvbuf(stdout, NULL, _IOLBF, 0);

	for (int i = 0; i < files; i++) {
		struct v4l2_requestbuffers request = {
			.count = 64,
			.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
			.memory = V4L2_MEMORY_USERPTR,
		};
		struct v4l2_create_buffers creation = {
			.count = 64,
			.memory = V4L2_MEMORY_USERPTR,
			.format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE },
		};
		pthread_t thread;
		char byte;
		int fd;

		if (strcmp(argv[1], "sleepers") == 0) {
			count(&opens, 0);
			pthread_create(&thread, NULL, sleeper, NULL);
			continue;
		}
		fd = count(&opens, open(device, O_RDWR | O_NONBLOCK));
		if (fd < 0)
			continue;
		if (strcmp(argv[1], "files") == 0)
			count(&reads, read(fd, &byte, 1));
		if (count(&requests, ioctl(fd, VIDIOC_REQBUFS, &request)) == 0)
			buffers += request.count;
		ioctl(fd, VIDIOC_G_FMT, &creation.format);
		if (count(&creations, ioctl(fd, VIDIOC_CREATE_BUFS, &creation)) == 0)
			buffers += creation.count;
	}
	if (strcmp(argv[1], "sleepers") == 0)
		sleep(1);
	report(&opens);
	report(&reads);
	report(&requests);
	report(&creations);
	printf("buffers: %d\n", buffers);
	while (getchar() != EOF)
		;
	return 0;
}
