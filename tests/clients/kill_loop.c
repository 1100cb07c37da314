/*
 * Starts a capture program again and again and kills it at a random moment.
 *
 *   kill_loop [-n CYCLES] [-s SEED] [-m MICROSECONDS] DEVICE
 *
 * Each cycle is a child that opens the device, asks for buffers, queues them,
 * streams and dequeues; SIGKILL comes after at most MICROSECONDS. At the end
 * it says how far the children had come. A child that is not dead two seconds
 * after SIGKILL, or one that meets an error, ends the loop with status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum stage { STARTED, OPENED, REQUESTED, QUEUED, STREAMING, DEQUEUED, FAILED, STAGES };

static const char *const names[STAGES] = {
	"before open", "after open", "after REQBUFS", "after the first QBUF",
	"after STREAMON", "after the first DQBUF", "failed",
};

/* In memory that parent and child share. */
static volatile struct progress {
	enum stage stage;
	int error;
	const char *call;
} *progress;

static void must(const char *call, int result)
{
	if (result < 0) {
		progress->error = errno;
		progress->call = call;
		progress->stage = FAILED;
		_exit(1);
	}
}

static void capture(const char *device)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	struct v4l2_format format = { .type = type };
	struct v4l2_requestbuffers request = {
		.count = 4, .type = type, .memory = V4L2_MEMORY_USERPTR,
	};
	struct v4l2_buffer b = { .type = type, .memory = V4L2_MEMORY_USERPTR };
	int fd;

	fd = open(device, O_RDWR);
	must("open", fd);
	progress->stage = OPENED;
	must("G_FMT", ioctl(fd, VIDIOC_G_FMT, &format));
	must("REQBUFS", ioctl(fd, VIDIOC_REQBUFS, &request));
	progress->stage = REQUESTED;
	b.length = format.fmt.pix.sizeimage;
	for (b.index = 0; b.index < request.count; b.index++) {
		b.m.userptr = (unsigned long)malloc(b.length);
		must("QBUF", ioctl(fd, VIDIOC_QBUF, &b));
		progress->stage = QUEUED;
	}
	must("STREAMON", ioctl(fd, VIDIOC_STREAMON, &type));
	progress->stage = STREAMING;
	for (;;) {
		must("DQBUF", ioctl(fd, VIDIOC_DQBUF, &b));
		progress->stage = DEQUEUED;
		must("QBUF", ioctl(fd, VIDIOC_QBUF, &b));
	}
}

/* Its end, or 0 if it does not come. */
static pid_t wait_two_seconds(pid_t child, int *status)
{
	pid_t ended = 0;

	for (int i = 0; i < 2000 && ended == 0; i++) {
		ended = waitpid(child, status, WNOHANG);
		if (ended == 0)
			usleep(1000);
	}
	return ended;
}

int main(int argc, char **argv)
{
	int cycles = 200, option, status, counts[STAGES] = { 0 };
	unsigned int seed = 1, longest = 60000;

	while ((option = getopt(argc, argv, "n:s:m:")) != -1) {
		switch (option) {
		case 'n':
			cycles = atoi(optarg);
			break;
		case 's':
			seed = strtoul(optarg, NULL, 0);
			break;
		case 'm':
			longest = strtoul(optarg, NULL, 0);
			break;
		}
	}
	srand(seed);
	progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	for (int cycle = 0; cycle < cycles; cycle++) {
		pid_t child;

		progress->stage = STARTED;
		child = fork();
		if (child == 0)
			capture(argv[optind]);
		usleep(rand() % longest);
		kill(child, SIGKILL);
		if (wait_two_seconds(child, &status) != child) {
			printf("cycle %d: the child is still there, %s\n", cycle, names[progress->stage]);
			return 1;
		}
		counts[progress->stage]++;
		if (progress->stage == FAILED) {
			printf("cycle %d: %s: %s\n", cycle, progress->call, strerror(progress->error));
			return 1;
		}
	}
	for (int stage = 0; stage < FAILED; stage++)
		printf("%s%d %s", stage ? ", " : "", counts[stage], names[stage]);
	putchar('\n');
	return 0;
}
