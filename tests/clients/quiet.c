/*
 * Counts what is allocated and freed while the functions are called that the
 * shim stands before, from the first call on: nothing. With a node, also what
 * the shim does there; buffers are mapped and exported.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

static volatile int counting, count;

void *malloc(size_t size)
{
	count += counting;
	return __libc_malloc(size);
}

void *calloc(size_t number, size_t size)
{
	count += counting;
	return __libc_calloc(number, size);
}

void *realloc(void *at, size_t size)
{
	count += counting;
	return __libc_realloc(at, size);
}

void free(void *at)
{
	count += counting;
	__libc_free(at);
}

static int failures;

#define QUIET(call) \
	({ \
		count = 0; \
		counting = 1; \
		__typeof__(call) result_ = (call); \
		counting = 0; \
		if (count) { \
			printf("%s: %d allocations\n", #call, count); \
			failures = 1; \
		} \
		result_; \
	})

static void must(int result, const char *what)
{
	if (result == -1) {
		perror(what);
		exit(2);
	}
}

static void stream(const char *node)
{
	struct v4l2_requestbuffers request = { .count = 2, .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_create_buffers create = { .count = 1, .memory = V4L2_MEMORY_MMAP };
	struct v4l2_buffer buffer = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE, .memory = V4L2_MEMORY_MMAP };
	struct v4l2_exportbuffer export = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE, .flags = O_RDWR };
	int fd = QUIET(open(node, O_RDWR)), type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	void *memory, *again;

	must(fd, node);
	request.memory = V4L2_MEMORY_MMAP;
	must(QUIET(ioctl(fd, VIDIOC_REQBUFS, &request)), "REQBUFS");
	create.format.type = type;
	must(ioctl(fd, VIDIOC_G_FMT, &create.format), "G_FMT");
	must(QUIET(ioctl(fd, VIDIOC_CREATE_BUFS, &create)), "CREATE_BUFS");
	must(ioctl(fd, VIDIOC_QUERYBUF, &buffer), "QUERYBUF");
	memory = QUIET(mmap(NULL, buffer.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, buffer.m.offset));
	must(memory == MAP_FAILED ? -1 : 0, "mmap");
	must(QUIET(ioctl(fd, VIDIOC_EXPBUF, &export)), "EXPBUF");
	again = QUIET(mmap(NULL, buffer.length, PROT_READ, MAP_SHARED, export.fd, 0));
	must(again == MAP_FAILED ? -1 : 0, "mmap of the exported buffer");
	memset(memory, 0x5a, buffer.length);
	if (memcmp(memory, again, buffer.length))
		printf("%s: what EXPBUF gives is not what mmap gives\n", node), failures = 1;
	must(QUIET(ioctl(fd, VIDIOC_PREPARE_BUF, &buffer)), "PREPARE_BUF");
	must(QUIET(ioctl(fd, VIDIOC_QBUF, &buffer)), "QBUF");
	must(ioctl(fd, VIDIOC_STREAMON, &type), "STREAMON");
	must(ioctl(fd, VIDIOC_DQBUF, &buffer), "DQBUF");
	must(ioctl(fd, VIDIOC_STREAMOFF, &type), "STREAMOFF");
	munmap(memory, buffer.length);
	munmap(again, buffer.length);
	close(export.fd);
	request.count = 0;
	must(QUIET(ioctl(fd, VIDIOC_REQBUFS, &request)), "REQBUFS of 0");

	/* Memory of the program's own: by the shim, it becomes the device's. */
	memory = mmap(NULL, 1 << 24, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 0, buffer.length);
	request.count = 2;
	request.memory = buffer.memory = V4L2_MEMORY_USERPTR;
	if (ioctl(fd, VIDIOC_REQBUFS, &request) == 0) {
		buffer.index = 0;
		buffer.m.userptr = (unsigned long)memory;
		must(QUIET(ioctl(fd, VIDIOC_QBUF, &buffer)), "QBUF of USERPTR");
		must(ioctl(fd, VIDIOC_STREAMON, &type), "STREAMON of USERPTR");
		must(ioctl(fd, VIDIOC_DQBUF, &buffer), "DQBUF of USERPTR");
		must(ioctl(fd, VIDIOC_STREAMOFF, &type), "STREAMOFF of USERPTR");
	}
	must(QUIET(close(fd)), "close");
}

int main(int argc, char **argv)
{
	struct v4l2_buffer buffer = { 0 };
	int bytes, fd = open("/dev/zero", O_RDWR);

	if (argc > 1)
		stream(argv[1]);
	QUIET(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	QUIET(ioctl(fd, FIONREAD, &bytes));
	QUIET(ioctl(fd, VIDIOC_QBUF, &buffer));
	QUIET(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0));
	QUIET(mmap64(NULL, 4096, PROT_READ, MAP_SHARED, -1, 0));
	QUIET(dup2(fd, 100));
	QUIET(dup3(fd, 101, O_CLOEXEC));
	QUIET(syscall(SYS_ioctl, fd, VIDIOC_QBUF, &buffer));
	QUIET(syscall(SYS_close, 101));
	QUIET(close(100));
	QUIET(close_range(100, 101, 0));
	QUIET((closefrom(100), 0));
	if (!failures)
		printf("nothing was allocated\n");
	return failures;
}
