/*
 * Streams from a V4L2 node, or calls one ioctl over and over, and prints what
 * that cost as key=value words. tests/bench-guest compares the figures of the
 * real node with ours.
 *
 * Only the steady state is measured: the first frames, for which the memory is
 * touched for the first time, are left out.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-heap.h>
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

static const char *device = "/dev/video0", *kind = "malloc", *latency_file, *cpu_file, *io_file;
static int fd, use_userptr, keep_pointers, use_poll;
static size_t length;
static void *memory[2 * BUFFERS]; /* two for each index, in turn, for USERPTR */
static unsigned turn[BUFFERS];

static void check(int result, const char *what)
{
	if (result == -1) {
		fprintf(stderr, "bench_stream: %s: %s: %s\n", device, what, strerror(errno));
		exit(1);
	}
}

static int64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* The number behind key in a file such as /proc/PID/io, -1 without one. */
static long long number(const char *path, const char *key)
{
	char line[256];
	long long value = -1;
	FILE *file = path ? fopen(path, "r") : NULL;

	if (!file)
		return -1;
	while (value == -1 && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)))
			value = strtoll(line + strlen(key), NULL, 10);
	fclose(file);
	return value;
}

/* What has been spent so far, by us, by the daemon, and by the whole machine. */
struct spent {
	int64_t wall, client;       /* ns */
	long long daemon;           /* us, from its cgroup's cpu.stat */
	long long reads, writes;    /* system calls of the daemon: FUSE requests and their answers */
	long long busy;             /* ticks of 10 ms, of all processors: coarse, but nothing escapes it */
};

static struct spent spent(void)
{
	long long user = 0, nice = 0, system = 0, idle, wait, irq = 0, softirq = 0;
	FILE *stat = fopen("/proc/stat", "r");

	if (stat) {
		if (fscanf(stat, "cpu %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &wait, &irq,
			   &softirq) != 7)
			user = nice = system = irq = softirq = 0;
		fclose(stat);
	}
	return (struct spent){
		.wall = now(CLOCK_MONOTONIC),
		.client = now(CLOCK_PROCESS_CPUTIME_ID),
		.daemon = number(cpu_file, "usage_usec"),
		.reads = number(io_file, "syscr:"),
		.writes = number(io_file, "syscw:"),
		.busy = user + nice + system + irq + softirq,
	};
}

static void print(const char *unit, unsigned count, struct spent a, struct spent b)
{
	double n = count, wall = (b.wall - a.wall) / 1e9;

	printf("%s=%u rate=%.2f wall_us=%.3f client_us=%.3f daemon_us=%.3f busy_us=%.1f reads=%.3f writes=%.3f\n", unit,
	       count, n / wall, wall * 1e6 / n, (b.client - a.client) / 1e3 / n, (b.daemon - a.daemon) / n,
	       (b.busy - a.busy) * 1e4 / n, (b.reads - a.reads) / n, (b.writes - a.writes) / n);
}

static void queue_buffer(unsigned index)
{
	struct v4l2_buffer buffer = { .index = index, .type = V4L2_BUF_TYPE_VIDEO_CAPTURE, .memory = V4L2_MEMORY_MMAP };

	if (use_userptr) {
		buffer.memory = V4L2_MEMORY_USERPTR;
		buffer.m.userptr = (unsigned long)memory[2 * index + turn[index]];
		buffer.length = length;
		turn[index] ^= !keep_pointers;
	}
	check(ioctl(fd, VIDIOC_QBUF, &buffer), "QBUF");
}

static void *heap_memory(void)
{
	struct dma_heap_allocation_data heap = { .len = (length + 4095) / 4096 * 4096, .fd_flags = O_RDWR | O_CLOEXEC };
	int heap_fd = open("/dev/dma_heap/system", O_RDWR);

	check(heap_fd, "/dev/dma_heap/system");
	check(ioctl(heap_fd, DMA_HEAP_IOCTL_ALLOC, &heap), "DMA_HEAP_IOCTL_ALLOC");
	close(heap_fd);
	/* Its fd stays open, as that of a program that passes it on. */
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, heap.fd, 0);
}

/* A buffer of another device, which has the same format. */
static void *device_memory(unsigned number, unsigned count)
{
	static int other = -1;
	struct v4l2_buffer buffer = { .index = number, .type = V4L2_BUF_TYPE_VIDEO_CAPTURE, .memory = V4L2_MEMORY_MMAP };

	if (other == -1) {
		struct v4l2_requestbuffers request = { .count = count, .type = buffer.type, .memory = buffer.memory };

		other = open(kind, O_RDWR);
		check(other, kind);
		check(ioctl(other, VIDIOC_REQBUFS, &request), "REQBUFS of the memory's device");
	}
	check(ioctl(other, VIDIOC_QUERYBUF, &buffer), "QUERYBUF of the memory's device");
	if (buffer.length < length) {
		errno = EINVAL;
		check(-1, "the memory's device has smaller buffers");
	}
	return mmap(NULL, buffer.length, PROT_READ | PROT_WRITE, MAP_SHARED, other, buffer.m.offset);
}

/* Number so and so of so many buffers of the kind of memory that was asked for. */
static void *allocate(unsigned number, unsigned count)
{
	void *got;

	if (!strcmp(kind, "malloc"))
		got = malloc(length);
	else if (!strcmp(kind, "pages"))
		got = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	else if (!strcmp(kind, "heap"))
		got = heap_memory();
	else
		got = device_memory(number, count);
	if (!got || got == MAP_FAILED)
		check(-1, kind);
	/* Memory that was never touched is slower to write, for the driver as for the daemon. */
	memset(got, 1, length);
	return got;
}

static void start(void)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_requestbuffers request = {
		.count = BUFFERS,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = use_userptr ? V4L2_MEMORY_USERPTR : V4L2_MEMORY_MMAP,
	};
	enum v4l2_buf_type type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

	check(ioctl(fd, VIDIOC_G_FMT, &format), "G_FMT");
	length = format.fmt.pix.sizeimage;
	check(ioctl(fd, VIDIOC_REQBUFS, &request), "REQBUFS");
	if (request.count != BUFFERS) {
		errno = ENOMEM;
		check(-1, "REQBUFS");
	}
	for (unsigned i = 0; i < 2 * BUFFERS; i++) {
		if (use_userptr) {
			memory[i] = allocate(i, 2 * BUFFERS);
		} else if (i < BUFFERS) {
			struct v4l2_buffer buffer = { .index = i, .type = type, .memory = V4L2_MEMORY_MMAP };

			check(ioctl(fd, VIDIOC_QUERYBUF, &buffer), "QUERYBUF");
			memory[i] = mmap(NULL, buffer.length, PROT_READ, MAP_SHARED, fd, buffer.m.offset);
			if (memory[i] == MAP_FAILED)
				check(-1, "mmap");
		}
	}
	for (unsigned i = 0; i < BUFFERS; i++)
		queue_buffer(i);
	check(ioctl(fd, VIDIOC_STREAMON, &type), "STREAMON");
}

/* Takes a frame and gives the buffer back. How long after the driver had finished it did we have it? In ns. */
static int64_t frame(void)
{
	struct v4l2_buffer buffer = {
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = use_userptr ? V4L2_MEMORY_USERPTR : V4L2_MEMORY_MMAP,
	};
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	int64_t finished, returned;

	if (use_poll)
		check(poll(&poll_fd, 1, 5000) == 1 ? 0 : -1, "poll");
	check(ioctl(fd, VIDIOC_DQBUF, &buffer), "DQBUF");
	returned = now(CLOCK_MONOTONIC);
	finished = buffer.timestamp.tv_sec * INT64_C(1000000000) + buffer.timestamp.tv_usec * INT64_C(1000);
	queue_buffer(buffer.index);
	return returned - finished;
}

static void stream(unsigned frames)
{
	int64_t *latency = calloc(frames, sizeof(*latency));
	FILE *file = latency_file ? fopen(latency_file, "a") : NULL;

	start();
	for (unsigned i = 0; i < 4 * BUFFERS; i++)
		frame();
	struct spent before = spent();
	for (unsigned i = 0; i < frames; i++)
		latency[i] = frame();
	print("frames", frames, before, spent());
	for (unsigned i = 0; file && i < frames; i++)
		fprintf(file, "%.1f\n", latency[i] / 1e3);
	if (file)
		fclose(file);
}

static int ascending(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/*
 * What a QBUF alone costs, in the median: of the pointer that this index had
 * last time (-k), or of another one each time. Nothing is streamed; STREAMOFF
 * takes the buffer back.
 */
static void queue_over_and_over(unsigned count)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_requestbuffers request = {
		.count = 2,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
	};
	enum v4l2_buf_type type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	int64_t *took = calloc(count, sizeof(*took));

	check(ioctl(fd, VIDIOC_G_FMT, &format), "G_FMT");
	length = format.fmt.pix.sizeimage;
	check(ioctl(fd, VIDIOC_REQBUFS, &request), "REQBUFS");
	for (unsigned i = 0; i < 2; i++)
		memory[i] = allocate(i, 2);
	/* The first ones are not counted: both pointers have been seen before. */
	for (unsigned i = 0; i < count + 4; i++) {
		int64_t before = now(CLOCK_MONOTONIC);

		queue_buffer(0);
		if (i >= 4)
			took[i - 4] = now(CLOCK_MONOTONIC) - before;
		check(ioctl(fd, VIDIOC_STREAMOFF, &type), "STREAMOFF");
	}
	qsort(took, count, sizeof(*took), ascending);
	printf("qbufs=%u qbuf_us=%.1f\n", count, took[count / 2] / 1e3);
	free(took);
}

static void call(unsigned count)
{
	int input;

	struct spent before = spent();
	for (unsigned i = 0; i < count; i++)
		check(ioctl(fd, VIDIOC_G_INPUT, &input), "G_INPUT");
	print("calls", count, before, spent());
}

int main(int argc, char **argv)
{
	unsigned count = 100;
	int calls = 0, queueing = 0, option;

	while ((option = getopt(argc, argv, "d:n:ukM:pqil:c:o:")) != -1) {
		switch (option) {
		case 'd': device = optarg; break;
		case 'n': count = atoi(optarg); break;
		case 'u': use_userptr = 1; break;
		case 'k': keep_pointers = 1; break;
		case 'M': kind = optarg; break;
		case 'q': queueing = use_userptr = 1; break;
		case 'p': use_poll = 1; break;
		case 'i': calls = 1; break;
		case 'l': latency_file = optarg; break;
		case 'c': cpu_file = optarg; break;
		case 'o': io_file = optarg; break;
		default:
			fprintf(stderr, "usage: %s [-d DEVICE] [-n COUNT] [-u [-k] [-M MEMORY]] [-p] [-q | -i] [-l FILE] [-c CPU.STAT] [-o PROC-IO]\n"
				"-u  user pointers, not MMAP   -k  the same at each QBUF   -p  poll() before DQBUF\n"
				"-M  malloc, pages, heap (/dev/dma_heap/system), or a /dev/videoN whose MMAP buffers they are\n"
				"-q  not frames but QBUFs, of user pointers, each taken back by STREAMOFF\n"
				"-i  not frames but ioctls     -l  append the latencies to FILE, in us\n"
				"-c  the daemon's cpu.stat     -o  the daemon's /proc/PID/io\n", argv[0]);
			return 1;
		}
	}
	fd = open(device, O_RDWR);
	check(fd, "open");
	if (calls)
		call(count);
	else if (queueing)
		queue_over_and_over(count);
	else
		stream(count);
	return 0;
}
