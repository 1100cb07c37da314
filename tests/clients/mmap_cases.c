/*
 * What a program may do with mmap on a V4L2 node and with EXPBUF, usual or
 * not: each case says what came of it, in words that are the same at each run.
 * The suite runs it on the real node and, with the client shim, on ours.
 *
 *   mmap_cases NODE [OTHER]
 *
 * OTHER is a capture node that imports an exported buffer. It knows nothing of
 * vidcompat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define WHOLE(length) (((length) + PAGE - 1) & ~(PAGE - 1))

static const char *node, *other;
static int multi;    /* multi-planar? */
static int output;   /* is it written to? */
static unsigned type;

/* A buffer as QUERYBUF tells of it: its first plane. */
struct told {
	unsigned flags;
	size_t length;
	off_t offset;
};

static void say(const char *format, ...)
{
	va_list rest;

	va_start(rest, format);
	vprintf(format, rest);
	va_end(rest);
	putchar('\n');
	fflush(stdout);
}

static const char *errno_of(int result)
{
	return result == -1 ? strerrorname_np(errno) : "ok";
}

static const char *errno_of_map(const void *map)
{
	return map == MAP_FAILED ? strerrorname_np(errno) : "ok";
}

static int open_node(int flags)
{
	int fd = open(node, flags);

	if (fd == -1) {
		perror(node);
		exit(1);
	}
	return fd;
}

static int reqbufs_of(int fd, unsigned memory, unsigned count)
{
	struct v4l2_requestbuffers request = { .type = type, .memory = memory, .count = count };

	return ioctl(fd, VIDIOC_REQBUFS, &request) == -1 ? -1 : (int)request.count;
}

static int reqbufs(int fd, unsigned count)
{
	return reqbufs_of(fd, V4L2_MEMORY_MMAP, count);
}

static struct told querybuf(int fd, unsigned index)
{
	struct v4l2_plane planes[VIDEO_MAX_PLANES] = { 0 };
	struct v4l2_buffer buffer = { .type = type, .index = index, .memory = V4L2_MEMORY_MMAP };
	struct told told = { 0 };

	if (multi) {
		buffer.m.planes = planes;
		buffer.length = VIDEO_MAX_PLANES;
	}
	if (ioctl(fd, VIDIOC_QUERYBUF, &buffer) == -1) {
		say("QUERYBUF %u: %s", index, strerrorname_np(errno));
		return told;
	}
	told.flags = buffer.flags & ~V4L2_BUF_FLAG_TIMESTAMP_MASK;
	told.length = multi ? planes[0].length : buffer.length;
	told.offset = multi ? planes[0].m.mem_offset : buffer.m.offset;
	return told;
}

static int queue(int fd, unsigned index)
{
	struct v4l2_plane planes[VIDEO_MAX_PLANES] = { 0 };
	struct v4l2_buffer buffer = { .type = type, .index = index, .memory = V4L2_MEMORY_MMAP };

	if (multi) {
		buffer.m.planes = planes;
		buffer.length = 1;
	}
	if (output)
		planes[0].bytesused = buffer.bytesused = 0; /* all of it */
	return ioctl(fd, VIDIOC_QBUF, &buffer);
}

/* The index, -1. */
static int dequeue(int fd, struct told *told)
{
	struct v4l2_plane planes[VIDEO_MAX_PLANES] = { 0 };
	struct v4l2_buffer buffer = { .type = type, .memory = V4L2_MEMORY_MMAP };

	if (multi) {
		buffer.m.planes = planes;
		buffer.length = VIDEO_MAX_PLANES;
	}
	if (ioctl(fd, VIDIOC_DQBUF, &buffer) == -1)
		return -1;
	told->flags = buffer.flags & ~V4L2_BUF_FLAG_TIMESTAMP_MASK;
	told->length = multi ? planes[0].length : buffer.length;
	told->offset = multi ? planes[0].m.mem_offset : buffer.m.offset;
	return buffer.index;
}

static uint32_t sum(const void *memory, size_t length)
{
	const unsigned char *bytes = memory;
	uint32_t value = 2166136261u;

	for (size_t at = 0; at < length; at++)
		value = (value ^ bytes[at]) * 16777619u;
	return value;
}

/* As much as the rights of the queue allow. */
static void *map(int fd, struct told told)
{
	return mmap(NULL, told.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, told.offset);
}

/*
 * A node with buffers and its buffer 0 mapped, which has a picture: a frame of
 * the camera's, or what is written to it.
 */
static void *pictured(int *fd, struct told *told)
{
	void *memory;

	*fd = open_node(O_RDWR);
	if (reqbufs(*fd, 3) < 1)
		say("REQBUFS: %s", strerrorname_np(errno));
	*told = querybuf(*fd, 0);
	memory = map(*fd, *told);
	if (memory == MAP_FAILED) {
		say("mmap: %s", strerrorname_np(errno));
		return NULL;
	}
	if (output) {
		for (size_t at = 0; at < told->length; at++)
			((unsigned char *)memory)[at] = (unsigned char)(at * 7 ^ at >> 8);
		return memory;
	}
	for (unsigned index = 0; index < 3; index++)
		if (queue(*fd, index) == -1)
			say("QBUF %u: %s", index, strerrorname_np(errno));
	if (ioctl(*fd, VIDIOC_STREAMON, &type) == -1)
		say("STREAMON: %s", strerrorname_np(errno));
	for (int round = 0; round < 3; round++)
		if (dequeue(*fd, told) == -1)
			say("DQBUF: %s", strerrorname_np(errno));
	if (ioctl(*fd, VIDIOC_STREAMOFF, &type) == -1)
		say("STREAMOFF: %s", strerrorname_np(errno));
	*told = querybuf(*fd, 0);
	return memory;
}

static void without_buffers(void)
{
	int fd = open_node(O_RDWR);

	say("mmap before REQBUFS: %s", errno_of_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
	/* Not every driver has user pointers, and then there are still no buffers. */
	reqbufs_of(fd, V4L2_MEMORY_USERPTR, 2);
	say("mmap in a USERPTR queue: %s", errno_of_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
	reqbufs_of(fd, V4L2_MEMORY_USERPTR, 0);
	say("REQBUFS of DMABUF: %d", reqbufs_of(fd, V4L2_MEMORY_DMABUF, 2));
	say("mmap in a DMABUF queue: %s", errno_of_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
	reqbufs_of(fd, V4L2_MEMORY_DMABUF, 0);
	say("mmap after all: %s", errno_of_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
	close(fd);
}

static void told_by_querybuf(void)
{
	struct v4l2_requestbuffers request = { .type = type, .memory = V4L2_MEMORY_MMAP, .count = 4 };
	struct v4l2_create_buffers create = { .memory = V4L2_MEMORY_MMAP, .count = 2, .format.type = type };
	int fd = open_node(O_RDWR), result;

	result = ioctl(fd, VIDIOC_REQBUFS, &request);
	/* What vidcompat is for: where a driver has no USERPTR there is one all the same. */
	say("REQBUFS: %s, %u buffers, capabilities %#x", errno_of(result), request.count,
	    request.capabilities & ~V4L2_BUF_CAP_SUPPORTS_USERPTR);
	ioctl(fd, VIDIOC_G_FMT, &create.format);
	result = ioctl(fd, VIDIOC_CREATE_BUFS, &create);
	say("CREATE_BUFS: %s, from %u on %u buffers, capabilities %#x", errno_of(result), create.index, create.count,
	    create.capabilities & ~V4L2_BUF_CAP_SUPPORTS_USERPTR);
	for (unsigned index = 0; index < 7; index++) {
		struct told told = querybuf(fd, index);
		void *memory = map(fd, told);

		say("buffer %u: length %zu, offset %#lx, flags %#x, mmap %s", index, told.length, (long)told.offset,
		    told.flags, errno_of_map(memory));
		if (memory != MAP_FAILED)
			munmap(memory, told.length);
	}
	close(fd);
}

static void lengths(void)
{
	int fd = open_node(O_RDWR);
	struct told told;
	size_t whole;

	reqbufs(fd, 2);
	told = querybuf(fd, 1);
	whole = WHOLE(told.length);
	struct { const char *name; size_t length; } tries[] = {
		{ "its own", told.length }, { "whole pages", whole }, { "one byte", 1 }, { "one page", PAGE },
		{ "one page less", whole - PAGE }, { "one byte more than its pages", whole + 1 },
		{ "one page more", whole + PAGE }, { "twice", 2 * whole }, { "nothing", 0 },
		{ "all there is", SIZE_MAX }, { "nearly all", SIZE_MAX - 2 * PAGE }, { "half of the addresses", SIZE_MAX / 2 },
	};
	for (unsigned at = 0; at < sizeof(tries) / sizeof(*tries); at++) {
		void *memory = mmap(NULL, tries[at].length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, told.offset);

		say("length %s: %s", tries[at].name, errno_of_map(memory));
		if (memory != MAP_FAILED)
			munmap(memory, tries[at].length);
	}
	struct { const char *name; off_t offset; } places[] = {
		{ "a page into it", told.offset + (off_t)PAGE }, { "a byte into it", told.offset + 1 },
		/* Of bits above 30 Linux 6.12 takes no notice, and 6.1 does. */
		{ "of no buffer", 0x3ffff000 }, { "negative", -(off_t)PAGE },
	};
	for (unsigned at = 0; at < sizeof(places) / sizeof(*places); at++) {
		void *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, places[at].offset);

		say("offset %s: %s", places[at].name, errno_of_map(memory));
		if (memory != MAP_FAILED)
			munmap(memory, PAGE);
	}
	close(fd);
}

/* What its first page allows, tried by the kernel, which says EFAULT. */
static const char *rights(void *memory)
{
	int ends[2], readable, writable;
	static char text[40];

	if (memory == MAP_FAILED || pipe(ends) == -1)
		return "";
	readable = write(ends[1], memory, 1) == 1;
	if (!readable && write(ends[1], "", 1) != 1)
		return "?";
	writable = read(ends[0], memory, 1) == 1;
	snprintf(text, sizeof(text), ", readable %d, writable %d", readable, writable);
	close(ends[0]);
	close(ends[1]);
	return text;
}

static void protections(void)
{
	static const struct { const char *name; int prot, flags; } tries[] = {
		{ "none", PROT_NONE, MAP_SHARED },
		{ "read", PROT_READ, MAP_SHARED },
		{ "write", PROT_WRITE, MAP_SHARED },
		{ "read and write", PROT_READ | PROT_WRITE, MAP_SHARED },
		{ "read and execute", PROT_READ | PROT_EXEC, MAP_SHARED },
		{ "private, read", PROT_READ, MAP_PRIVATE },
		{ "private, write", PROT_READ | PROT_WRITE, MAP_PRIVATE },
		{ "neither shared nor private", PROT_READ | PROT_WRITE, 0 },
		{ "validated", PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE },
		{ "validated, a flag that nobody knows", PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | 1 << 27 },
		{ "synchronous", PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC },
		{ "populated", PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE },
		{ "locked", PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED },
		{ "without reserve", PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE },
		{ "huge", PROT_READ | PROT_WRITE, MAP_SHARED | MAP_HUGETLB },
		{ "anonymous", PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS },
	};
	static const int opened[] = { O_RDWR, O_RDONLY, O_WRONLY };
	int owner = open_node(O_RDWR);
	struct told told;

	reqbufs(owner, 2);
	told = querybuf(owner, 0);
	for (unsigned how = 0; how < 3; how++) {
		int fd = how ? open_node(opened[how]) : dup(owner);

		for (unsigned at = 0; at < sizeof(tries) / sizeof(*tries); at++) {
			void *memory = mmap(NULL, told.length, tries[at].prot, tries[at].flags, fd, told.offset);
			const char *result = errno_of_map(memory), *may = rights(memory);
			int fails = memory == MAP_FAILED || mprotect(memory, told.length, PROT_READ | PROT_WRITE);

			say("opened %d, %s: %s%s, more rights %s", opened[how], tries[at].name, result, may,
			    memory == MAP_FAILED ? "" : errno_of(-fails));
			if (memory != MAP_FAILED)
				munmap(memory, told.length);
		}
		close(fd);
	}
	/* Who has not asked for the buffers may map them, too. */
	int reader = open_node(O_RDWR);
	say("not the queue's owner: QUERYBUF: %#x", querybuf(reader, 0).flags);
	say("not the queue's owner: mmap: %s", errno_of_map(map(reader, told)));
	close(owner);
}

/* At an address of the program's own. */
static void places(void)
{
	int fd = open_node(O_RDWR);
	char *area, *memory;
	struct told told;
	size_t whole;

	reqbufs(fd, 2);
	told = querybuf(fd, 0);
	whole = WHOLE(told.length);
	area = mmap(NULL, whole + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(area, 'a', whole + 2 * PAGE);
	memory = mmap(area + PAGE, told.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, told.offset);
	say("over other memory: %s, there %d, what is around it %c%c", errno_of_map(memory), memory == area + PAGE, area[0],
	    area[whole + PAGE]);
	memory = mmap(area + 1, told.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, told.offset);
	say("not at a page: %s", errno_of_map(memory));
	memory = mmap(area + PAGE, told.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, told.offset);
	say("where something is: %s", errno_of_map(memory));
	memory = mmap(area, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0x7ffff000);
	say("a wrong offset over other memory: %s", errno_of_map(memory));
	say("what was there%s", rights(area));
	munmap(area, whole + 2 * PAGE);
	memory = mmap(area, told.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, told.offset);
	say("a hint: %s, there %d", errno_of_map(memory), memory == area);
	munmap(memory, told.length);
	say("a bad fd: %s", errno_of_map(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, 999, 0)));
	close(fd);
}

static void flags(void)
{
	int fd = open_node(O_RDWR);
	struct told told;
	void *first, *second;

	reqbufs(fd, 2);
	told = querybuf(fd, 0);
	say("not mapped: %#x", told.flags);
	first = map(fd, told);
	say("mapped: %#x", querybuf(fd, 0).flags);
	second = map(fd, told);
	munmap(first, told.length);
	say("mapped once more, and once less: %#x", querybuf(fd, 0).flags);
	munmap(second, PAGE);
	say("without its first page: %#x", querybuf(fd, 0).flags);
	munmap(second, told.length);
	/* Who has exported it may let go of it a moment later. */
	for (int tries = 0; tries < 100 && querybuf(fd, 0).flags; tries++)
		usleep(5000);
	say("not mapped any more: %#x, buffer 1 %#x", querybuf(fd, 0).flags, querybuf(fd, 1).flags);
	close(fd);
}

/* Streams, every buffer mapped. */
static void stream(void)
{
	int fd = open_node(O_RDWR);
	void *memory[3];
	struct told told[3], done = { 0 };
	int count = reqbufs(fd, 3);

	say("%d buffers", count);
	for (int index = 0; index < 3; index++) {
		told[index] = querybuf(fd, index);
		memory[index] = map(fd, told[index]);
		say("map %d: %s, QBUF: %s", index, errno_of_map(memory[index]), errno_of(queue(fd, index)));
	}
	say("STREAMON: %s", errno_of(ioctl(fd, VIDIOC_STREAMON, &type)));
	for (int round = 0; round < 8; round++) {
		struct pollfd wait = { .fd = fd, .events = output ? POLLOUT : POLLIN };
		/* One direction of an m2m device alone stands still. */
		int ready = poll(&wait, 1, 1000), index = ready == 1 && !(wait.revents & POLLERR) ? dequeue(fd, &done) : -1;

		say("poll %d %#x, buffer %d: length %zu, offset %#lx, flags %#x", ready, wait.revents, index, done.length,
		    (long)done.offset, done.flags);
		if (index == -1)
			break;
		if (!output)
			say("picture %08x", sum(memory[index], told[index].length));
		say("QBUF: %s", errno_of(queue(fd, index)));
	}
	say("STREAMOFF: %s", errno_of(ioctl(fd, VIDIOC_STREAMOFF, &type)));
	for (int index = 0; index < 3; index++)
		say("munmap: %s", errno_of(munmap(memory[index], told[index].length)));
	say("REQBUFS(0): %d", reqbufs(fd, 0));
	close(fd);
}

/* A mapping outlives its buffer, and its file. */
static void orphans(void)
{
	struct told told;
	uint32_t before;
	void *memory, *again;
	int fd;

	memory = pictured(&fd, &told);
	if (!memory)
		return;
	before = sum(memory, told.length);
	if (!output)
		say("picture %08x", before);
	say("REQBUFS(0): %d", reqbufs(fd, 0));
	say("its picture is kept: %d", sum(memory, told.length) == before);
	say("mmap of it: %s", errno_of_map(map(fd, told)));
	say("REQBUFS: %d", reqbufs(fd, 3));
	say("its picture is kept: %d, flags of the new one %#x", sum(memory, told.length) == before, querybuf(fd, 0).flags);
	again = map(fd, told);
	say("the new one: %s, empty %d", errno_of_map(again), sum(again, told.length) != before);
	memset(again, 'n', told.length);
	say("its picture is kept: %d", sum(memory, told.length) == before);
	close(fd);
	say("after close: %d %d", sum(memory, told.length) == before, ((char *)again)[told.length - 1] == 'n');
	((char *)memory)[0] ^= 1;
	say("it can be written to: %d", sum(memory, told.length) != before);
	fd = open_node(O_RDWR);
	say("somebody else's REQBUFS: %d", reqbufs(fd, 2));
	close(fd);
	say("munmap: %s %s", errno_of(munmap(memory, told.length)), errno_of(munmap(again, told.length)));
}

/* The number that the next fd has. */
static int lowest(void)
{
	int fd = dup(0);

	close(fd);
	return fd;
}

static void export(int fd, const char *name, unsigned of_type, unsigned index, unsigned plane, unsigned how)
{
	struct v4l2_exportbuffer request = { .type = of_type, .index = index, .plane = plane, .flags = how, .fd = -77 };
	int expected = lowest(), result = ioctl(fd, VIDIOC_EXPBUF, &request);

	if (result == -1) {
		say("%s: %s, fd %d", name, strerrorname_np(errno), request.fd);
		return;
	}
	say("%s: ok, lowest %d, FD flags %d, file flags %#x, length %ld, flags %#x", name, request.fd == expected,
	    fcntl(request.fd, F_GETFD), fcntl(request.fd, F_GETFL), (long)lseek(request.fd, 0, SEEK_END), request.flags);
	close(request.fd);
}

static void exports(void)
{
	struct told told;
	int fd, hole;
	void *memory = pictured(&fd, &told);

	export(fd, "no flags", type, 0, 0, 0);
	export(fd, "O_CLOEXEC", type, 0, 0, O_CLOEXEC);
	export(fd, "O_RDONLY", type, 1, 0, O_RDONLY);
	export(fd, "O_RDWR", type, 1, 0, O_RDWR);
	export(fd, "O_RDWR and O_CLOEXEC", type, 1, 0, O_RDWR | O_CLOEXEC);
	export(fd, "O_WRONLY", type, 0, 0, O_WRONLY);
	export(fd, "both", type, 0, 0, O_WRONLY | O_RDWR);
	export(fd, "O_NONBLOCK", type, 0, 0, O_NONBLOCK);
	export(fd, "every flag", type, 0, 0, ~0u);
	export(fd, "plane 1", type, 0, 1, O_RDWR);
	export(fd, "plane 8", type, 0, 8, O_RDWR);
	export(fd, "no such index", type, 99, 0, O_RDWR);
	export(fd, "index -1", type, ~0u, 0, O_RDWR);
	export(fd, "another type", V4L2_BUF_TYPE_VBI_CAPTURE, 0, 0, O_RDWR);
	export(fd, "type 0", 0, 0, 0, O_RDWR);
	hole = dup(0);
	int after = dup(0);
	close(hole);
	export(fd, "into a hole", type, 0, 0, O_RDWR);
	close(after);
	say("null: %s", errno_of(ioctl(fd, VIDIOC_EXPBUF, NULL)));
	say("no address: %s", errno_of(ioctl(fd, VIDIOC_EXPBUF, (void *)8)));
	int reader = open_node(O_RDWR);
	export(reader, "who is not the owner", type, 0, 0, O_RDWR);
	close(reader);
	if (memory)
		munmap(memory, told.length);
	say("REQBUFS(0): %d", reqbufs(fd, 0));
	export(fd, "no buffers", type, 0, 0, O_RDWR);
	reqbufs_of(fd, V4L2_MEMORY_DMABUF, 2);
	export(fd, "a DMABUF queue", type, 0, 0, O_RDWR);
	close(fd);
}

/* A file that can only be read cannot be written through what it has exported. */
static void exports_for_reading(void)
{
	static const int opened[] = { O_RDWR, O_RDONLY };

	for (unsigned how = 0; how < 2; how++) {
		int file = open_node(opened[how]);

		say("opened %d, REQBUFS: %d", opened[how], reqbufs(file, 2));
		for (unsigned rights = 0; rights < 2; rights++) {
			struct v4l2_exportbuffer request = { .type = type, .flags = rights ? O_RDWR : O_RDONLY };
			int result = ioctl(file, VIDIOC_EXPBUF, &request);

			say("  EXPBUF %d: %s", rights, errno_of(result));
			if (result == -1)
				continue;
			say("  mmap to read %s, to write %s, private %s",
			    errno_of_map(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, request.fd, 0)),
			    errno_of_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, request.fd, 0)),
			    errno_of_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, request.fd, 0)));
			close(request.fd);
		}
		close(file);
	}
}

/* Does `other` import it, and put a frame there? */
static void import(int dmabuf, size_t length, const void *memory)
{
	unsigned capture = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	struct v4l2_requestbuffers request = { .type = capture, .memory = V4L2_MEMORY_DMABUF, .count = 2 };
	struct v4l2_buffer buffer = { .type = capture, .memory = V4L2_MEMORY_DMABUF, .m.fd = dmabuf, .length = length };
	int fd;
	uint32_t before = sum(memory, length);

	if (!strcmp(other, "nobody"))
		return;
	fd = open(other, O_RDWR);
	say("import: REQBUFS %s", errno_of(ioctl(fd, VIDIOC_REQBUFS, &request)));
	buffer.type = capture;
	if (ioctl(fd, VIDIOC_QBUF, &buffer) == -1) {
		/* dma-contig takes no vmalloc buffers. */
		say("  QBUF %s", strerrorname_np(errno));
		close(fd);
		return;
	}
	say("  STREAMON %s", errno_of(ioctl(fd, VIDIOC_STREAMON, &capture)));
	say("  DQBUF %s", errno_of(ioctl(fd, VIDIOC_DQBUF, &buffer)));
	say("  STREAMOFF %s", errno_of(ioctl(fd, VIDIOC_STREAMOFF, &capture)));
	say("  a picture: %d", sum(memory, length) != before);
	close(fd);
}

static void shared(void)
{
	struct v4l2_exportbuffer request = { .type = type, .flags = O_RDWR | O_CLOEXEC };
	struct told told;
	int fd, fds[2], got = -1, status;
	char *memory = pictured(&fd, &told), *of_export;
	uint32_t before;
	pid_t child;

	if (!memory)
		return;
	before = sum(memory, told.length);
	say("EXPBUF: %s", errno_of(ioctl(fd, VIDIOC_EXPBUF, &request)));
	of_export = mmap(NULL, told.length, PROT_READ | PROT_WRITE, MAP_SHARED, request.fd, 0);
	say("mmap of it: %s", errno_of_map(of_export));
	if (of_export != MAP_FAILED) {
		say("the same bytes: %d", sum(of_export, told.length) == before);
		of_export[5] ^= 1;
		say("the same memory: %d", sum(memory, told.length) != before);
		of_export[5] ^= 1;
	}
	if ((child = fork()) == 0) {
		void *again;

		say("child: the parent's mapping %d", sum(memory, told.length) == before);
		again = map(fd, told);
		say("child: mmap %s", errno_of_map(again));
		say("child: munmap %s", errno_of(munmap(memory, told.length)));
		_exit(again != MAP_FAILED && sum(again, told.length) == before);
	}
	waitpid(child, &status, 0);
	say("the child's picture: %#x; after it the flags are %#x", status, querybuf(fd, 0).flags);
	/* To another process, which has not opened it. */
	socketpair(AF_UNIX, SOCK_DGRAM, 0, fds);
	if ((child = fork()) == 0) {
		char byte, room[CMSG_SPACE(sizeof(int))];
		struct iovec part = { .iov_base = &byte, .iov_len = 1 };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
		void *passed;

		close(fd);
		if (recvmsg(fds[1], &message, 0) != 1)
			_exit(99);
		memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(got));
		passed = map(got, told);
		say("who was passed the file: mmap %s, flags %#x", errno_of_map(passed), querybuf(got, 0).flags);
		_exit(passed != MAP_FAILED && sum(passed, told.length) == before);
	} else {
		char byte = 'x', room[CMSG_SPACE(sizeof(int))] = { 0 };
		struct iovec part = { .iov_base = &byte, .iov_len = 1 };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
		sendmsg(fds[0], &message, 0);
		waitpid(child, &status, 0);
		say("its picture: %#x", status);
	}
	int twin = dup(fd);
	close(fd);
	void *by_twin = map(twin, told);
	say("by a dup, the first closed: %s, its picture %d", errno_of_map(by_twin),
	    by_twin != MAP_FAILED && sum(by_twin, told.length) == before);
	if (other)
		import(request.fd, told.length, memory);
	close(twin);
	/* The exported buffer lives on. */
	void *late = mmap(NULL, told.length, PROT_READ, MAP_SHARED, request.fd, 0);
	say("after close: %s, the same memory %d", errno_of_map(late),
	    late != MAP_FAILED && sum(late, told.length) == sum(memory, told.length));
	close(request.fd);
}

/* What a mapping allows besides. */
static void more(void)
{
	struct told told;
	int fd;
	char *memory = pictured(&fd, &told), *moved;
	size_t whole = WHOLE(told.length);
	unsigned char resident[1];

	if (!memory)
		return;
	say("msync: %s", errno_of(msync(memory, whole, MS_SYNC)));
	say("mlock: %s", errno_of(mlock(memory, whole)));
	say("munlock: %s", errno_of(munlock(memory, whole)));
	say("MADV_DONTNEED: %s", errno_of(madvise(memory, whole, MADV_DONTNEED)));
	say("MADV_DONTFORK: %s", errno_of(madvise(memory, whole, MADV_DONTFORK)));
	say("mincore: %s", errno_of(mincore(memory, PAGE, resident)));
	say("to be read only: %s", errno_of(mprotect(memory, PAGE, PROT_READ)));
	say("and written again: %s", errno_of(mprotect(memory, PAGE, PROT_READ | PROT_WRITE)));
	say("and executed: %s", errno_of(mprotect(memory, PAGE, PROT_READ | PROT_EXEC)));
	mprotect(memory, PAGE, PROT_READ | PROT_WRITE);
	say("grown: %s", errno_of_map(mremap(memory, whole, whole + PAGE, MREMAP_MAYMOVE)));
	moved = mremap(memory, whole, whole - PAGE, MREMAP_MAYMOVE);
	say("shrunk: %s", errno_of_map(moved));
	say("flags: %#x", querybuf(fd, 0).flags);
	char byte;
	say("read while there are buffers: %s", errno_of(read(fd, &byte, 1) == -1 ? -1 : 0));
	close(fd);
}

/* No fd is left: EXPBUF needs one, mmap natively none. */
static void exhausted(void)
{
	struct rlimit limit, none;
	int fd = open_node(O_RDWR);
	struct told told;
	void *memory;

	reqbufs(fd, 2);
	told = querybuf(fd, 0);
	getrlimit(RLIMIT_NOFILE, &limit);
	none = limit;
	none.rlim_cur = lowest();
	setrlimit(RLIMIT_NOFILE, &none);
	export(fd, "EXPBUF without an fd", type, 0, 0, O_RDWR);
	memory = map(fd, told);
	say("mmap without an fd: %s", errno_of_map(memory));
	none.rlim_cur++;
	setrlimit(RLIMIT_NOFILE, &none);
	struct v4l2_exportbuffer request = { .type = type, .flags = O_RDWR };
	int result = ioctl(fd, VIDIOC_EXPBUF, &request);
	say("EXPBUF with one fd: %s", errno_of(result));
	if (result != -1)
		close(request.fd);
	memory = map(fd, told);
	say("mmap with one fd: %s", errno_of_map(memory));
	setrlimit(RLIMIT_NOFILE, &limit);
	/* And nothing was lost by it. */
	export(fd, "EXPBUF with all of them", type, 0, 0, O_RDWR);
	memory = map(fd, told);
	say("mmap with all of them: %s", errno_of_map(memory));
	say("the lowest fd: %d", lowest() == fd + 1);
	close(fd);
}

static int late_fd;
static struct told late_told;
static volatile int handled;
static void *volatile in_handler;

static void handler(int signal)
{
	(void)signal;
	errno = 0;
	in_handler = mmap(NULL, late_told.length, PROT_READ | PROT_WRITE, MAP_SHARED, late_fd, late_told.offset);
	handled = 1;
}

static void *from_thread(void *unused)
{
	(void)unused;
	return map(late_fd, late_told);
}

/* From other places than a quiet main(). */
static void elsewhere(void)
{
	struct sigaction action = { .sa_handler = handler };
	pthread_attr_t attributes;
	pthread_t thread;
	void *memory;
	pid_t child;
	int status;

	late_fd = open_node(O_RDWR);
	reqbufs(late_fd, 2);
	late_told = querybuf(late_fd, 0);
	errno = 1234;
	memory = map(late_fd, late_told);
	say("errno is left alone: %d %d", memory != MAP_FAILED, errno);
	memory = mmap64(NULL, late_told.length, PROT_READ | PROT_WRITE, MAP_SHARED, late_fd, late_told.offset);
	say("mmap64: %s", errno_of_map(memory));
#ifdef SYS_mmap2
	memory = (void *)syscall(SYS_mmap2, NULL, late_told.length, PROT_READ | PROT_WRITE, MAP_SHARED, late_fd,
				 late_told.offset / PAGE);
	say("syscall: %s", errno_of_map(memory));
	memory = (void *)syscall(SYS_mmap2, NULL, late_told.length, PROT_READ, MAP_SHARED, late_fd, 0x7ffff);
#else
	memory = (void *)syscall(SYS_mmap, NULL, late_told.length, PROT_READ | PROT_WRITE, MAP_SHARED, late_fd,
				 late_told.offset);
	say("syscall: %s", errno_of_map(memory));
	memory = (void *)syscall(SYS_mmap, NULL, late_told.length, PROT_READ, MAP_SHARED, late_fd, 0x7ffff000L);
#endif
	say("syscall, a wrong offset: %s", errno_of_map(memory));
	struct v4l2_exportbuffer request = { .type = type, .flags = O_RDWR | O_CLOEXEC };
	int expected = lowest();
	say("syscall, EXPBUF: %s, lowest %d", errno_of(syscall(SYS_ioctl, late_fd, VIDIOC_EXPBUF, &request)),
	    request.fd == expected);
	close(request.fd);

	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
	say("in a signal handler: %d %s", handled, errno_of_map(in_handler));
	child = vfork();
	if (child == 0) {
		void *mapped = mmap(NULL, late_told.length, PROT_READ | PROT_WRITE, MAP_SHARED, late_fd, late_told.offset);

		_exit(mapped == MAP_FAILED ? errno : munmap(mapped, late_told.length));
	}
	waitpid(child, &status, 0);
	say("in a vfork child: %#x", status);
	say("flags: %#x", querybuf(late_fd, 0).flags);
	/* As small as a stack may be. */
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 16384);
	pthread_create(&thread, &attributes, from_thread, NULL);
	pthread_join(thread, &memory);
	say("in a thread with a small stack: %s", errno_of_map(memory));
}

static void at_exit(void)
{
	void *memory = map(late_fd, late_told);

	say("at exit: %s", errno_of_map(memory));
}

__attribute__((destructor)) static void at_the_end(void)
{
	void *memory;

	if (!late_fd)
		return;
	memory = map(late_fd, late_told);
	say("in a destructor: %s", errno_of_map(memory));
	say("REQBUFS(0): %d", reqbufs(late_fd, 0));
}

static void look(void)
{
	struct v4l2_capability capability;
	int fd = open_node(O_RDWR);

	if (ioctl(fd, VIDIOC_QUERYCAP, &capability) == -1) {
		perror("QUERYCAP");
		exit(1);
	}
	close(fd);
	multi = !!(capability.device_caps & (V4L2_CAP_VIDEO_CAPTURE_MPLANE | V4L2_CAP_VIDEO_OUTPUT_MPLANE));
	output = !!(capability.device_caps & (V4L2_CAP_VIDEO_OUTPUT | V4L2_CAP_VIDEO_OUTPUT_MPLANE | V4L2_CAP_VIDEO_M2M));
	type = multi ? output ? V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE : V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE :
		       output ? V4L2_BUF_TYPE_VIDEO_OUTPUT : V4L2_BUF_TYPE_VIDEO_CAPTURE;
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*play)(void); } cases[] = {
		{ "without buffers", without_buffers }, { "told by QUERYBUF", told_by_querybuf }, { "lengths", lengths },
		{ "protections", protections }, { "places", places }, { "flags", flags }, { "stream", stream },
		{ "orphans", orphans }, { "exports", exports }, { "exports for reading", exports_for_reading },
		{ "shared", shared }, { "more", more }, { "exhausted", exhausted }, { "elsewhere", elsewhere },
	};
	const unsigned last = sizeof(cases) / sizeof(*cases) - 1;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: %s NODE [OTHER]\n", argv[0]);
		return 2;
	}
	node = argv[1];
	other = argv[2];
	look();
	atexit(at_exit);
	/* Each in a process of its own, as mappings keep a file open; the last one in this one, which ends like any other. */
	for (unsigned at = 0; at < last; at++) {
		int status;

		say("= %s", cases[at].name);
		if (fork() == 0) {
			cases[at].play();
			_exit(0);
		}
		wait(&status);
		say("ended %#x", status);
	}
	say("= %s", cases[last].name);
	cases[last].play();
	return 0;
}
