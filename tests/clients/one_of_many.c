/*
 * One of several programs that use one node, or several nodes, at the same
 * time: measures how long it is kept waiting.
 *
 *   one_of_many NODE TYPE MILLISECONDS          streams all the time
 *   one_of_many NODE TYPE MILLISECONDS TURN     takes the queue when it is
 *       free, streams for TURN milliseconds and gives it back, once;
 *       before and after it asks for what any file may ask, until its stdin
 *       is closed or MILLISECONDS are over
 *
 * TYPE is the number of a buffer type; multi-planar ones with one plane or more.
 * User pointers, not page-aligned.
 *
 * Prints key=value words: frames; longest_ms, the longest call but DQBUF;
 * wait_ms, the longest wait from one frame to the next; asked, the number of
 * calls beside streaming; busy, how often the queue was another's; turns; and
 * whatever it was told that it should not have been told.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MAX_BUFFERS 8

static const char *node;
static int fd, type, mplane;
static unsigned count, planes;
static size_t length[VIDEO_MAX_PLANES];
static unsigned char *memory[MAX_BUFFERS][VIDEO_MAX_PLANES];
static unsigned frames, damaged, asked, busy, turns, events;
static double longest, wait_longest;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void fail(const char *what)
{
	printf("%s: %s: %s\n", node, what, strerrorname_np(errno));
	exit(1);
}

/* An ioctl, timed. */
static int call(unsigned long request, void *argument)
{
	double begin = now(), took;
	int result = ioctl(fd, request, argument);

	took = now() - begin;
	if (took > longest)
		longest = took;
	return result;
}

static void must(const char *what, unsigned long request, void *argument)
{
	if (call(request, argument) == -1)
		fail(what);
}

static struct v4l2_buffer buffer_of(unsigned index, struct v4l2_plane *p)
{
	struct v4l2_buffer b = { .index = index, .type = type, .memory = V4L2_MEMORY_USERPTR };

	memset(p, 0, VIDEO_MAX_PLANES * sizeof(*p));
	if (mplane) {
		b.m.planes = p;
		b.length = planes;
	}
	return b;
}

static void queue_buffer(unsigned index)
{
	struct v4l2_plane p[VIDEO_MAX_PLANES];
	struct v4l2_buffer b = buffer_of(index, p);

	for (unsigned i = 0; mplane && i < planes; i++) {
		p[i].m.userptr = (unsigned long)memory[index][i];
		p[i].length = p[i].bytesused = length[i];
	}
	if (!mplane) {
		b.m.userptr = (unsigned long)memory[index][0];
		b.length = b.bytesused = length[0];
	}
	if (V4L2_TYPE_IS_OUTPUT(type))
		b.field = V4L2_FIELD_INTERLACED;
	must("QBUF", VIDIOC_QBUF, &b);
}

/* What the queue's buffers need, from QUERYBUF: every type has another format. */
static void allocate(void)
{
	for (unsigned index = 0; index < count; index++) {
		struct v4l2_plane p[VIDEO_MAX_PLANES];
		struct v4l2_buffer b = buffer_of(index, p);

		if (mplane)
			b.length = VIDEO_MAX_PLANES;
		must("QUERYBUF", VIDIOC_QUERYBUF, &b);
		planes = mplane ? b.length : 1;
		for (unsigned i = 0; i < planes; i++) {
			length[i] = mplane ? p[i].length : b.length;
			memory[index][i] = realloc(memory[index][i], length[i] + 16);
			if (!memory[index][i])
				fail("malloc");
			memset(memory[index][i], 0x10, length[i]);
		}
	}
}

/* Is the queue ours? Then it has buffers. */
static int take(void)
{
	struct v4l2_requestbuffers r = { .count = 4, .type = type, .memory = V4L2_MEMORY_USERPTR };

	if (call(VIDIOC_REQBUFS, &r) == -1) {
		if (errno != EBUSY)
			fail("REQBUFS");
		busy++;
		return 0;
	}
	count = r.count < MAX_BUFFERS ? r.count : MAX_BUFFERS;
	allocate();
	return 1;
}

static void stream(double end)
{
	double last;

	for (unsigned index = 0; index < count; index++)
		queue_buffer(index);
	must("STREAMON", VIDIOC_STREAMON, &type);
	last = now();
	while (last < end) {
		struct v4l2_plane p[VIDEO_MAX_PLANES];
		struct v4l2_buffer b = buffer_of(0, p);
		double came;

		if (ioctl(fd, VIDIOC_DQBUF, &b) == -1)
			fail("DQBUF");
		came = now();
		if (came - last > wait_longest)
			wait_longest = came - last;
		last = came;
		frames++;
		damaged += !!(b.flags & V4L2_BUF_FLAG_ERROR);
		queue_buffer(b.index);
	}
	must("STREAMOFF", VIDIOC_STREAMOFF, &type);
}

static void give_back(void)
{
	struct v4l2_requestbuffers r = { .count = 0, .type = type, .memory = V4L2_MEMORY_USERPTR };

	must("REQBUFS(0)", VIDIOC_REQBUFS, &r);
	turns++;
}

/* What everybody may ask, whoever streams. */
static void ask(void)
{
	struct v4l2_capability capability;
	struct v4l2_format format = { .type = type };
	struct v4l2_control control = { .id = V4L2_CID_BRIGHTNESS, .value = 100 + asked % 50 };
	struct v4l2_event event;
	struct pollfd p = { .fd = fd, .events = POLLPRI };

	must("QUERYCAP", VIDIOC_QUERYCAP, &capability);
	must("G_FMT", VIDIOC_G_FMT, &format);
	must("S_CTRL", VIDIOC_S_CTRL, &control);
	must("G_CTRL", VIDIOC_G_CTRL, &control);
	asked += 4;
	/* Other programs' changes. */
	if (poll(&p, 1, 5) > 0 && p.revents & POLLPRI) {
		must("DQEVENT", VIDIOC_DQEVENT, &event);
		events += event.type == V4L2_EVENT_CTRL && event.id == V4L2_CID_BRIGHTNESS;
	}
}

int main(int argc, char **argv)
{
	double begin = now(), end;
	struct v4l2_event_subscription s = { .type = V4L2_EVENT_CTRL, .id = V4L2_CID_BRIGHTNESS };

	if (argc != 4 && argc != 5) {
		fprintf(stderr, "usage: %s NODE TYPE MILLISECONDS [TURN]\n", argv[0]);
		return 2;
	}
	node = argv[1];
	type = atoi(argv[2]);
	mplane = V4L2_TYPE_IS_MULTIPLANAR(type);
	planes = 1;
	end = begin + atoi(argv[3]);
	fd = open(node, O_RDWR);
	if (fd == -1)
		fail("open");
	if (argc == 4) {
		if (!take())
			fail("REQBUFS");
		stream(end);
		give_back();
	} else {
		struct pollfd told = { .fd = 0, .events = POLLIN };

		must("SUBSCRIBE_EVENT", VIDIOC_SUBSCRIBE_EVENT, &s);
		/* The end of stdin. */
		while (now() < end && poll(&told, 1, 0) == 0) {
			if (turns == 0 && take()) {
				stream(now() + atoi(argv[4]));
				give_back();
				printf("turn\n");
				fflush(stdout);
			}
			ask();
		}
	}
	printf("frames=%u damaged=%u longest_ms=%.0f wait_ms=%.0f asked=%u busy=%u turns=%u events=%u\n", frames, damaged,
	       longest, wait_longest, asked, busy, turns, events);
	return 0;
}
