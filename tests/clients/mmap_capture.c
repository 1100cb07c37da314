/*
 * A capture program that maps the driver's buffers, as most do. It knows nothing
 * of vidcompat. It can map them in each way that libc has: by mmap, mmap64 or
 * syscall(), and what VIDIOC_EXPBUF gives instead of the node. With -c it first
 * tells what comes of mappings that are right and wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_BUFFERS 32

static const char *device = "/dev/video0", *how = "mmap";
static int fd;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", device, what, strerror(errno));
	exit(1);
}

static void must(unsigned long request, void *argument, const char *what)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result == -1 && errno == EINTR);
	if (result == -1)
		fail(what);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void *map(void *at, size_t length, int prot, int flags, int file, uint64_t offset)
{
	if (!strcmp(how, "mmap64"))
		return mmap64(at, length, prot, flags, file, offset);
	if (!strcmp(how, "syscall"))
#ifdef SYS_mmap2
		/* Of 4096 bytes, whatever the size of a page. */
		return (void *)syscall(SYS_mmap2, at, length, prot, flags, file, (unsigned long)(offset / 4096));
#else
		return (void *)syscall(SYS_mmap, at, length, prot, flags, file, offset);
#endif
	if (offset != (uint64_t)(off_t)offset) {
		errno = EOVERFLOW; /* it cannot be said with this off_t */
		return MAP_FAILED;
	}
	return mmap(at, length, prot, flags, file, offset);
}

/* What comes of one mapping: the errno, or whether it reads as a mapping of the buffer does. */
static void try(const char *name, size_t length, int prot, int flags, uint64_t offset, const char *right)
{
	void *reserved = NULL, *memory;

	if (flags & MAP_FIXED) {
		reserved = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (reserved == MAP_FAILED)
			fail("mmap of nothing");
	}
	errno = 0;
	memory = map(reserved, length, prot, flags, fd, offset);
	if (memory == MAP_FAILED)
		printf("%s: %s\n", name, strerror(errno));
	else if (reserved && memory != reserved)
		printf("%s: elsewhere\n", name);
	else if (prot & PROT_READ)
		/* (errno stays as it was when a call succeeds.) */
		printf("%s: mapped, %s, errno %d\n", name,
		       memcmp(memory, right, length) ? "other bytes" : "the buffer", errno);
	else
		printf("%s: mapped\n", name);
	if (memory != MAP_FAILED && munmap(memory, length))
		fail("munmap");
}

static void try_all(const struct v4l2_buffer *buffer, const char *right)
{
	size_t page = sysconf(_SC_PAGESIZE), all = (buffer->length + page - 1) / page * page;
	uint64_t at = buffer->m.offset;
	const int read_write = PROT_READ | PROT_WRITE;

	try("read", buffer->length, PROT_READ, MAP_SHARED, at, right);
	try("read and write", buffer->length, read_write, MAP_SHARED, at, right);
	try("write", buffer->length, PROT_WRITE, MAP_SHARED, at, right);
	try("no access", buffer->length, PROT_NONE, MAP_SHARED, at, right);
	try("validated flags", buffer->length, read_write, MAP_SHARED_VALIDATE, at, right);
	try("private", buffer->length, read_write, MAP_PRIVATE, at, right);
	try("neither shared nor private", buffer->length, read_write, 0, at, right);
	try("at an address", buffer->length, read_write, MAP_SHARED | MAP_FIXED, at, right);
	try("nothing", 0, read_write, MAP_SHARED, at, right);
	try("one byte", 1, read_write, MAP_SHARED, at, right);
	try("a page", page, read_write, MAP_SHARED, at, right);
	try("without the last page", all - page, read_write, MAP_SHARED, at, right);
	try("a page too much", all + page, read_write, MAP_SHARED, at, right);
	try("more than there are addresses", -page, read_write, MAP_SHARED, at, right);
	try("a page further", page, read_write, MAP_SHARED, at + page, right);
	try("far away", page, read_write, MAP_SHARED, at + 0x7ff00000, right);
	if (strcmp(how, "mmap")) {
		/* Two that are the buffer for whoever counts in 32 bits. */
		try("4 GiB further", page, read_write, MAP_SHARED, at + (UINT64_C(1) << 32), right);
		try("16 TiB less a page further", page, read_write, MAP_SHARED,
		    at + (UINT64_C(1) << 44) - page, right);
	}
	if (strcmp(how, "syscall"))
		try("between two pages", page, read_write, MAP_SHARED, at + 1, right);
}

int main(int argc, char **argv)
{
	unsigned frames = 6, count = 4;
	int export = 0, check = 0, option;
	enum v4l2_buf_type type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	struct v4l2_buffer buffers[MAX_BUFFERS];
	char *memory[MAX_BUFFERS];
	double begin = now();
	FILE *output = NULL;

	while ((option = getopt(argc, argv, "d:n:b:m:o:ec")) != -1) {
		switch (option) {
		case 'd': device = optarg; break;
		case 'n': frames = atoi(optarg); break;
		case 'b': count = atoi(optarg); break;
		case 'm': how = optarg; break;
		case 'o':
			output = fopen(optarg, "w");
			if (!output)
				fail(optarg);
			break;
		case 'e': export = 1; break;
		case 'c': check = 1; break;
		default:
			fprintf(stderr, "usage: %s [-d DEVICE] [-n FRAMES] [-b BUFFERS] [-m mmap|mmap64|syscall]\n"
				"	[-e] [-c] [-o FILE]\n"
				"-e  map what EXPBUF gives    -c  first tell what comes of other mappings\n", argv[0]);
			return 1;
		}
	}

	fd = open(device, O_RDWR);
	if (fd == -1)
		fail("open");
	struct v4l2_requestbuffers request = {
		.count = count < MAX_BUFFERS ? count : MAX_BUFFERS,
		.type = type,
		.memory = V4L2_MEMORY_MMAP,
	};
	must(VIDIOC_REQBUFS, &request, "REQBUFS MMAP");
	count = request.count;
	printf("%u buffers, capabilities %#x\n", count, request.capabilities);

	for (unsigned index = 0; index < count; index++) {
		struct v4l2_buffer *buffer = &buffers[index];
		int file = fd;

		memset(buffer, 0, sizeof(*buffer));
		buffer->index = index;
		buffer->type = type;
		buffer->memory = V4L2_MEMORY_MMAP;
		must(VIDIOC_QUERYBUF, buffer, "QUERYBUF");
		printf("buffer %u: %u bytes at %#x\n", index, buffer->length, buffer->m.offset);
		if (export) {
			struct v4l2_exportbuffer exported = { .type = type, .index = index, .flags = O_RDWR | O_CLOEXEC };

			must(VIDIOC_EXPBUF, &exported, "EXPBUF");
			file = exported.fd;
			/* The lowest free number, as of any call that opens a file. */
			printf("exported %u: fd %d, flags %#x %#x\n", index, file - fd, fcntl(file, F_GETFD),
			       fcntl(file, F_GETFL));
		}
		memory[index] = map(NULL, buffer->length, PROT_READ | PROT_WRITE, MAP_SHARED, file,
				    export ? 0 : buffer->m.offset);
		if (memory[index] == MAP_FAILED)
			fail(how);
		memset(memory[index], 1 + index, buffer->length);
	}
	if (check && !export)
		try_all(&buffers[count - 1], memory[count - 1]);

	for (unsigned index = 0; index < count; index++)
		must(VIDIOC_QBUF, &buffers[index], "QBUF");
	must(VIDIOC_STREAMON, &type, "STREAMON");
	for (unsigned frame = 0; frame < frames; frame++) {
		struct v4l2_buffer buffer = { .type = type, .memory = V4L2_MEMORY_MMAP };

		must(VIDIOC_DQBUF, &buffer, "DQBUF");
		double at = buffer.timestamp.tv_sec + buffer.timestamp.tv_usec / 1e6;
		/* Either size of time_t must come out at the right place; vivid's time is not exact. */
		if (buffer.index >= count || buffer.m.offset != buffers[buffer.index].m.offset ||
		    at < begin - 1 || at > now() + 1 || buffer.flags & V4L2_BUF_FLAG_ERROR)
			printf("DQBUF: index %u, offset %#x, time %f, flags %#x\n", buffer.index, buffer.m.offset, at,
			       buffer.flags);
		if (output && fwrite(memory[buffer.index], 1, buffer.bytesused, output) != buffer.bytesused)
			fail("-o");
		must(VIDIOC_QBUF, &buffer, "QBUF");
	}
	must(VIDIOC_STREAMOFF, &type, "STREAMOFF");
	if (output && fclose(output))
		fail("-o");

	/* What is mapped stays, without a buffer of this number. */
	unsigned char first = memory[0][0];
	request.count = 0;
	printf("REQBUFS 0: %s\n", ioctl(fd, VIDIOC_REQBUFS, &request) ? strerror(errno) : "done");
	printf("%s\n", (unsigned char)memory[0][0] == first ? "still there" : "another byte");
	if (check && !export)
		try("freed", buffers[0].length, PROT_READ, MAP_SHARED, buffers[0].m.offset, memory[0]);
	for (unsigned index = 0; index < count; index++)
		if (munmap(memory[index], buffers[index].length))
			fail("munmap");
	printf("frames=%u\n", frames);
	return 0;
}
