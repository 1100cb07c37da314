/*
 * A capture program of the old kind: user pointers, as in the capture example
 * of the V4L2 documentation. It knows nothing of vidcompat.
 *
 * Its buffers are what malloc gives, so they do not begin on a page, and it
 * names another one at each VIDIOC_QBUF, as Qt Multimedia does: there are twice
 * as many buffers as indices and they take turns. With -k each index keeps its
 * buffer.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

#define MAX_BUFFERS 32

static int fd;
static size_t length;                    /* of each buffer, in bytes */
static void *pool[2 * MAX_BUFFERS];      /* buffers that nobody has queued, oldest first */
static unsigned pool_size;
static void *queued[MAX_BUFFERS];        /* index by index: what the driver has */

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void fail_with(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

/* An ioctl that a signal interrupts is repeated, as the documentation has it. */
static int xioctl(unsigned long request, void *argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result == -1 && errno == EINTR);
	return result;
}

static unsigned parse_fourcc(const char *text)
{
	if (strlen(text) != 4)
		fail_with("-f: a format has four characters, such as YUYV");
	return v4l2_fourcc(text[0], text[1], text[2], text[3]);
}

static unsigned parse_number(const char *text, unsigned min, unsigned max)
{
	char *end;
	unsigned long number = strtoul(text, &end, 10);

	if (*end || end == text || number < min || number > max) {
		fprintf(stderr, "%s: not a number from %u to %u\n", text, min, max);
		exit(1);
	}
	return number;
}

static double seconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void set_format(unsigned width, unsigned height, unsigned fourcc)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };

	if (xioctl(VIDIOC_G_FMT, &format) == -1)
		fail("G_FMT");
	if (width || height || fourcc) {
		if (width)
			format.fmt.pix.width = width;
		if (height)
			format.fmt.pix.height = height;
		if (fourcc)
			format.fmt.pix.pixelformat = fourcc;
		format.fmt.pix.field = V4L2_FIELD_ANY;
		/* These follow from the size; the driver fills them in. */
		format.fmt.pix.bytesperline = 0;
		format.fmt.pix.sizeimage = 0;
		if (xioctl(VIDIOC_S_FMT, &format) == -1)
			fail("S_FMT");
		if ((width && format.fmt.pix.width != width) ||
		    (height && format.fmt.pix.height != height) ||
		    (fourcc && format.fmt.pix.pixelformat != fourcc))
			fail_with("S_FMT: the driver has not got this format");
	}
	length = format.fmt.pix.sizeimage;
}

/* Queues index with the buffer that has been free for longest. */
static void queue_buffer(unsigned index)
{
	struct v4l2_buffer buffer = {
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
		.length = length,
	};

	buffer.m.userptr = (unsigned long)pool[0];
	queued[index] = pool[0];
	memmove(pool, pool + 1, --pool_size * sizeof(pool[0]));
	if (xioctl(VIDIOC_QBUF, &buffer) == -1)
		fail("QBUF");
}

static void wait_with_select(void)
{
	int ready;

	do {
		struct timeval timeout = { .tv_sec = 5 };
		fd_set fds;

		FD_ZERO(&fds);
		FD_SET(fd, &fds);
		ready = select(fd + 1, &fds, NULL, NULL, &timeout);
	} while (ready == -1 && errno == EINTR);
	if (ready == -1)
		fail("select");
	if (ready == 0)
		fail_with("select: no frame within 5 seconds");
}

int main(int argc, char **argv)
{
	const char *device = "/dev/video0";
	unsigned frames = 60, width = 0, height = 0, fourcc = 0, count = 4;
	int use_select = 0, keep_pointers = 0, verbose = 0, option;
	FILE *output = NULL;

	while ((option = getopt(argc, argv, "d:n:w:h:f:b:o:skv")) != -1) {
		switch (option) {
		case 'd': device = optarg; break;
		case 'n': frames = parse_number(optarg, 1, 1u << 30); break;
		case 'w': width = parse_number(optarg, 1, 1u << 16); break;
		case 'h': height = parse_number(optarg, 1, 1u << 16); break;
		case 'f': fourcc = parse_fourcc(optarg); break;
		case 'b': count = parse_number(optarg, 1, MAX_BUFFERS); break;
		case 'o':
			output = fopen(optarg, "a");
			if (!output)
				fail(optarg);
			break;
		case 's': use_select = 1; break;
		case 'k': keep_pointers = 1; break;
		case 'v': verbose = 1; break;
		default:
			fprintf(stderr, "usage: %s [-d DEVICE] [-n FRAMES] [-w WIDTH] [-h HEIGHT] [-f FOURCC]\n"
				"	[-b BUFFERS] [-o FILE] [-s] [-k] [-v]\n"
				"-o  append the frames to FILE       -s  select() before each DQBUF\n"
				"-k  keep the pointer of each index  -v  a line per frame, as of v4l2-ctl --verbose\n",
				argv[0]);
			return 1;
		}
	}

	fd = open(device, O_RDWR);
	if (fd == -1)
		fail(device);
	struct v4l2_capability capability;
	if (xioctl(VIDIOC_QUERYCAP, &capability) == -1)
		fail("QUERYCAP");
	if (!(capability.capabilities & V4L2_CAP_VIDEO_CAPTURE) || !(capability.capabilities & V4L2_CAP_STREAMING))
		fail_with("QUERYCAP: not a device that streams video");
	set_format(width, height, fourcc);

	struct v4l2_requestbuffers request = {
		.count = count,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
	};
	if (xioctl(VIDIOC_REQBUFS, &request) == -1)
		fail("REQBUFS USERPTR");
	count = request.count < MAX_BUFFERS ? request.count : MAX_BUFFERS;

	unsigned pointers = keep_pointers ? count : 2 * count;
	while (pool_size < pointers) {
		/* Large blocks begin 16 bytes into a page. */
		pool[pool_size] = malloc(length);
		if (!pool[pool_size])
			fail("malloc");
		if ((size_t)pool[pool_size++] % sysconf(_SC_PAGESIZE) == 0)
			fail_with("malloc: a page-aligned buffer, which is not what this program is for");
	}
	for (unsigned index = 0; index < count; index++)
		queue_buffer(index);

	enum v4l2_buf_type type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	if (xioctl(VIDIOC_STREAMON, &type) == -1)
		fail("STREAMON");

	double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), first = 0, last = 0;
	unsigned long long bytes = 0;
	unsigned damaged = 0;
	for (unsigned frame = 0; frame < frames; frame++) {
		struct v4l2_buffer buffer = { .type = type, .memory = V4L2_MEMORY_USERPTR };

		if (use_select)
			wait_with_select();
		if (xioctl(VIDIOC_DQBUF, &buffer) == -1)
			fail("DQBUF");
		last = seconds(CLOCK_MONOTONIC);
		if (frame == 0)
			first = last;
		if (buffer.index >= count || (void *)buffer.m.userptr != queued[buffer.index])
			fail_with("DQBUF: another pointer than was queued");
		if (verbose)
			printf("cap dqbuf: %u seq: %6u bytesused: %u ts: %lld.%06ld\n", buffer.index, buffer.sequence,
			       buffer.bytesused, (long long)buffer.timestamp.tv_sec, (long)buffer.timestamp.tv_usec);
		damaged += !!(buffer.flags & V4L2_BUF_FLAG_ERROR);
		bytes += buffer.bytesused;
		if (output && fwrite(queued[buffer.index], 1, buffer.bytesused, output) != buffer.bytesused)
			fail("-o");
		pool[pool_size++] = queued[buffer.index];
		queue_buffer(buffer.index);
	}
	cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	if (xioctl(VIDIOC_STREAMOFF, &type) == -1)
		fail("STREAMOFF");
	if (output && fclose(output))
		fail("-o");

	printf("frames=%u bytes=%llu damaged=%u fps=%.2f cpu=%.4f\n", frames, bytes, damaged,
	       last > first ? (frames - 1) / (last - first) : 0.0, cpu);
	return 0;
}
