/*
 * The bandwidth of the daemon's one copy, against memcpy on the same machine:
 * from a dma-heap buffer's mapping, between DMA_BUF_IOCTL_SYNC calls, with
 * process_vm_writev into memory that another process got from malloc.
 *
 *   bench_copy SIZE...
 *
 * A line for each size: MB/s, each the median of several rounds that take turns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 9
#define BYTES_PER_ROUND (64 << 20)

static size_t size;
static int dma_buf;             /* -1: this kernel has no heap, a memfd stands in */
static void *mapping, *from, *to;
static pid_t child;
static void *child_memory;

static void fail(const char *what)
{
	fprintf(stderr, "bench_copy: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double seconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void *touched(size_t bytes)
{
	void *memory = malloc(bytes);

	if (!memory)
		fail("malloc");
	memset(memory, 1, bytes);
	return memory;
}

/* As daemon/src/memory/heap.rs does it. */
static void map_heap_buffer(void)
{
	size_t pages = (size + 4095) & ~(size_t)4095;
	struct dma_heap_allocation_data data = { .len = pages, .fd_flags = O_RDWR | O_CLOEXEC };
	int heap = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC), fd;

	dma_buf = -1;
	if (heap != -1) {
		if (ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data) == -1)
			fail("DMA_HEAP_IOCTL_ALLOC");
		close(heap);
		fd = dma_buf = data.fd;
	} else {
		fd = memfd_create("bench_copy", 0);
		if (fd == -1 || ftruncate(fd, pages) == -1)
			fail("memfd_create");
	}
	mapping = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		fail("mmap");
	memset(mapping, 2, size);
}

/* A process with touched malloc memory, where a client is. */
static void start_child(void)
{
	int ends[2];

	if (pipe(ends) == -1)
		fail("pipe");
	child = fork();
	if (child == -1)
		fail("fork");
	if (child == 0) {
		void *memory = touched(size);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (write(ends[1], &memory, sizeof(memory)) != sizeof(memory))
			_exit(1);
		for (;;)
			pause();
	}
	if (read(ends[0], &child_memory, sizeof(child_memory)) != sizeof(child_memory))
		fail("the child");
	close(ends[0]);
	close(ends[1]);
}

static void sync_heap(uint64_t flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	if (dma_buf != -1 && ioctl(dma_buf, DMA_BUF_IOCTL_SYNC, &sync) == -1)
		fail("DMA_BUF_IOCTL_SYNC");
}

static void write_to_child(void *source)
{
	struct iovec local = { source, size }, remote = { child_memory, size };

	if (process_vm_writev(child, &local, 1, &remote, 1, 0) != (ssize_t)size)
		fail("process_vm_writev");
}

static void copy_as_daemon(void)
{
	sync_heap(DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ);
	write_to_child(mapping);
	sync_heap(DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
}

static void copy_from_malloc(void) { write_to_child(from); }

/* Behind a barrier: the compiler must not see that nobody reads the result. */
static void memcpy_from_mapping(void)
{
	memcpy(to, mapping, size);
	__asm__ volatile("" : : "r"(to) : "memory");
}

static void memcpy_from_malloc(void)
{
	memcpy(to, from, size);
	__asm__ volatile("" : : "r"(to) : "memory");
}

static const struct {
	const char *name;
	void (*copy)(void);
} kinds[] = {
	{ "daemon", copy_as_daemon },
	{ "writev_malloc", copy_from_malloc },
	{ "memcpy_mapping", memcpy_from_mapping },
	{ "memcpy_malloc", memcpy_from_malloc },
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		double rate[KINDS][ROUNDS];

		size = strtoul(argv[i], NULL, 10);
		if (!size) {
			fprintf(stderr, "usage: %s SIZE...\n", argv[0]);
			return 1;
		}
		unsigned times = BYTES_PER_ROUND / size + 1;
		map_heap_buffer();
		from = touched(size);
		to = touched(size);
		start_child();
		for (unsigned round = 0; round < ROUNDS; round++) {
			for (unsigned kind = 0; kind < KINDS; kind++) {
				double start = seconds();

				for (unsigned n = 0; n < times; n++)
					kinds[kind].copy();
				rate[kind][round] = times * (double)size / (seconds() - start) / 1e6;
			}
		}
		printf("size=%zu source=%s", size, dma_buf == -1 ? "memfd" : "heap");
		for (unsigned kind = 0; kind < KINDS; kind++) {
			qsort(rate[kind], ROUNDS, sizeof(double), compare);
			printf(" %s=%.0f", kinds[kind].name, rate[kind][ROUNDS / 2]);
		}
		printf("\n");
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	return 0;
}
