/*
 * A program that streams until its stdin ends and looks at every byte: what a
 * daemon that is killed under it may neither stop nor spoil.
 *
 *   survivor [-p] [-a] DEVICE userptr|mmap|read|output
 *
 * -p polls before each DQBUF; -a aligns user pointers to pages. Every frame must
 * be that of the first, but for the upper rows, where the driver writes time and
 * number: these must be other in each. Buffers are poisoned before they are
 * queued, so that what was not written is seen. At the end it tells how many
 * frames it got, how many the driver's numbers say were lost, and the longest
 * time between two. It knows nothing of vidcompat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BUFFERS 4
#define TEXT_ROWS 64
#define REMEMBERED 4096

static int fd;
static unsigned char *memory[BUFFERS], *first;
static size_t lengths[BUFFERS];
static size_t size, text;
static unsigned frames, lost, last_sequence, longest_ms;
static uint64_t hashes[REMEMBERED];
static double last_time;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	printf("failed: %s: %s after %u frames\n", what, strerrorname_np(errno), frames);
	exit(1);
}

static void xioctl(unsigned long request, void *argument, const char *what)
{
	if (ioctl(fd, request, argument))
		fail(what);
}

static void wrong(const char *what, size_t at, unsigned sequence)
{
	printf("wrong: %s at byte %zu of frame %u (sequence %u)\n", what, at, frames, sequence);
	exit(1);
}

/* A frame is there. */
static void look(const unsigned char *frame, size_t bytes, unsigned sequence)
{
	uint64_t hash = 1469598103934665603u;
	double time = now();
	size_t at;

	if (bytes != size)
		wrong("length", bytes, sequence);
	if (!first) {
		first = malloc(size);
		memcpy(first, frame, size);
	}
	if (memcmp(first + text, frame + text, size - text)) {
		for (at = text; first[at] == frame[at]; at++)
			;
		wrong("picture", at, sequence);
	}
	for (at = 0; at < text; at++)
		hash = (hash ^ frame[at]) * 1099511628211u;
	for (at = 0; at < REMEMBERED && at < frames; at++)
		if (hashes[at] == hash)
			wrong("a frame that was there before", 0, sequence);
	hashes[frames % REMEMBERED] = hash;
	if (frames) {
		unsigned ms = (time - last_time) * 1000;

		if (ms > longest_ms)
			longest_ms = ms;
		if (sequence && sequence <= last_sequence)
			wrong("sequence", 0, sequence);
		if (sequence)
			lost += sequence - last_sequence - 1;
	}
	last_time = time;
	last_sequence = sequence;
	frames++;
}

static int is_over(void)
{
	struct pollfd in = { .fd = 0, .events = POLLIN };
	char byte;

	return poll(&in, 1, 0) == 1 && read(0, &byte, 1) == 0;
}

static void queue(unsigned type, unsigned memory_type, unsigned index)
{
	struct v4l2_buffer buffer = { .type = type, .memory = memory_type, .index = index };

	if (type == V4L2_BUF_TYPE_VIDEO_CAPTURE)
		memset(memory[index], 0x55 ^ frames, size);
	else
		memset(memory[index], frames, size);
	if (memory_type == V4L2_MEMORY_USERPTR) {
		buffer.m.userptr = (unsigned long)memory[index];
		buffer.length = lengths[index];
	}
	if (type == V4L2_BUF_TYPE_VIDEO_OUTPUT)
		buffer.bytesused = size;
	buffer.field = V4L2_FIELD_NONE;
	xioctl(VIDIOC_QBUF, &buffer, "QBUF");
	if (memory_type == V4L2_MEMORY_USERPTR && buffer.m.userptr != (unsigned long)memory[index])
		wrong("pointer from QBUF", 0, 0);
}

static void stream(unsigned type, unsigned memory_type, int polls, int aligned)
{
	struct v4l2_requestbuffers request = { .count = BUFFERS, .type = type, .memory = memory_type };
	struct v4l2_buffer buffer;
	unsigned index;

	xioctl(VIDIOC_REQBUFS, &request, "REQBUFS");
	if (request.count != BUFFERS)
		wrong("number of buffers", request.count, 0);
	for (index = 0; index < BUFFERS; index++) {
		lengths[index] = size;
		if (memory_type == V4L2_MEMORY_MMAP) {
			memset(&buffer, 0, sizeof(buffer));
			buffer.type = type;
			buffer.memory = memory_type;
			buffer.index = index;
			xioctl(VIDIOC_QUERYBUF, &buffer, "QUERYBUF");
			lengths[index] = buffer.length;
			memory[index] = mmap(NULL, buffer.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, buffer.m.offset);
		} else {
			memory[index] = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		}
		if (memory[index] == MAP_FAILED)
			fail("mmap");
		if (memory_type == V4L2_MEMORY_USERPTR && !aligned)
			memory[index] += 80;
		queue(type, memory_type, index);
	}
	xioctl(VIDIOC_STREAMON, &type, "STREAMON");
	printf("streaming\n");
	while (!is_over()) {
		struct pollfd ready = { .fd = fd, .events = type == V4L2_BUF_TYPE_VIDEO_OUTPUT ? POLLOUT : POLLIN };

		if (polls && poll(&ready, 1, -1) != 1)
			fail("poll");
		if (polls && ready.revents & POLLERR)
			fail("poll says POLLERR");
		memset(&buffer, 0, sizeof(buffer));
		buffer.type = type;
		buffer.memory = memory_type;
		xioctl(VIDIOC_DQBUF, &buffer, "DQBUF");
		if (buffer.flags & V4L2_BUF_FLAG_ERROR)
			wrong("flags", buffer.flags, buffer.sequence);
		if (memory_type == V4L2_MEMORY_USERPTR && buffer.m.userptr != (unsigned long)memory[buffer.index])
			wrong("pointer", 0, buffer.sequence);
		if (type == V4L2_BUF_TYPE_VIDEO_CAPTURE) {
			look(memory[buffer.index], buffer.bytesused, buffer.sequence);
		} else {
			double time = now();

			if (frames && (time - last_time) * 1000 > longest_ms)
				longest_ms = (time - last_time) * 1000;
			if (frames && buffer.sequence <= last_sequence)
				wrong("sequence", 0, buffer.sequence);
			if (frames)
				lost += buffer.sequence - last_sequence - 1;
			last_sequence = buffer.sequence;
			last_time = time;
			frames++;
		}
		queue(type, memory_type, buffer.index);
	}
	xioctl(VIDIOC_STREAMOFF, &type, "STREAMOFF");
}

int main(int argc, char **argv)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	int option, polls = 0, aligned = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while ((option = getopt(argc, argv, "pa")) != -1) {
		polls |= option == 'p';
		aligned |= option == 'a';
	}
	if (argc - optind != 2)
		return 2;
	argv += optind;
	fd = open(argv[0], O_RDWR);
	if (fd < 0)
		fail("open");
	if (!strcmp(argv[1], "output"))
		format.type = V4L2_BUF_TYPE_VIDEO_OUTPUT;
	xioctl(VIDIOC_G_FMT, &format, "G_FMT");
	size = format.fmt.pix.sizeimage;
	text = format.fmt.pix.bytesperline * TEXT_ROWS;
	if (!strcmp(argv[1], "read")) {
		memory[0] = malloc(size + 1);
		printf("streaming\n");
		while (!is_over()) {
			ssize_t got;

			memset(memory[0], 0x55 ^ frames, size + 1);
			got = read(fd, memory[0], size);
			if (got < 0)
				fail("read");
			look(memory[0], got, 0);
		}
	} else {
		stream(format.type, strcmp(argv[1], "mmap") ? V4L2_MEMORY_USERPTR : V4L2_MEMORY_MMAP, polls, aligned);
	}
	if (close(fd))
		fail("close");
	printf("frames %u lost %u longest %u ms\n", frames, lost, longest_ms);
	return 0;
}
