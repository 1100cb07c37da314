/*
 * Captures into buffers of another device, by their dma-bufs: as programs do
 * that show or encode what a camera sees without copying it.
 *
 *   dmabuf_capture NODE EXPORTER [FRAMES FILE]
 *
 * EXPORTER is asked for buffers of its own (MMAP) and exports them; frames of
 * NODE are captured into these and written to FILE. Without FRAMES it says
 * "streaming" after the first one and goes on for ever.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/videodev2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFERS 4

static int fd, exporter, dma_buf[BUFFERS];
static size_t length;

static int must(const char *call, int result)
{
	if (result == -1) {
		printf("%s: %s\n", call, strerrorname_np(errno));
		exit(1);
	}
	return result;
}

static void request_buffers(int device, int memory)
{
	struct v4l2_requestbuffers r = { .count = BUFFERS, .type = V4L2_BUF_TYPE_VIDEO_CAPTURE, .memory = memory };

	must("REQBUFS", ioctl(device, VIDIOC_REQBUFS, &r));
	if (r.count < BUFFERS) {
		printf("REQBUFS: %u buffers\n", r.count);
		exit(1);
	}
}

static void queue_buffer(int index)
{
	struct v4l2_buffer b = {
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
		.m.fd = dma_buf[index],
	};

	must("QBUF", ioctl(fd, VIDIOC_QBUF, &b));
}

static void copy_out(int index, size_t bytes, FILE *file)
{
	struct dma_buf_sync begin = { DMA_BUF_SYNC_READ | DMA_BUF_SYNC_START };
	struct dma_buf_sync end = { DMA_BUF_SYNC_READ | DMA_BUF_SYNC_END };
	void *frame = mmap(NULL, length, PROT_READ, MAP_SHARED, dma_buf[index], 0);

	must("mmap", frame == MAP_FAILED ? -1 : 0);
	must("SYNC", ioctl(dma_buf[index], DMA_BUF_IOCTL_SYNC, &begin));
	must("writing", fwrite(frame, 1, bytes, file) == bytes ? 0 : -1);
	must("SYNC", ioctl(dma_buf[index], DMA_BUF_IOCTL_SYNC, &end));
	munmap(frame, length);
}

int main(int argc, char **argv)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	long frames = -1;
	FILE *file = NULL;

	if (argc != 3 && argc != 5) {
		fprintf(stderr, "usage: %s NODE EXPORTER [FRAMES FILE]\n", argv[0]);
		return 2;
	}
	if (argc == 5) {
		frames = atol(argv[3]);
		file = fopen(argv[4], "w");
		must(argv[4], file ? 0 : -1);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = must(argv[1], open(argv[1], O_RDWR));
	exporter = must(argv[2], open(argv[2], O_RDWR));
	must("G_FMT", ioctl(fd, VIDIOC_G_FMT, &format));
	length = format.fmt.pix.sizeimage;
	request_buffers(exporter, V4L2_MEMORY_MMAP);
	request_buffers(fd, V4L2_MEMORY_DMABUF);
	for (int i = 0; i < BUFFERS; i++) {
		struct v4l2_exportbuffer e = { .type = type, .index = i, .flags = O_RDWR | O_CLOEXEC };

		must("EXPBUF", ioctl(exporter, VIDIOC_EXPBUF, &e));
		dma_buf[i] = e.fd;
		queue_buffer(i);
	}
	must("STREAMON", ioctl(fd, VIDIOC_STREAMON, &type));
	for (long frame = 0; frame != frames; frame++) {
		struct v4l2_buffer b = { .type = type, .memory = V4L2_MEMORY_DMABUF };

		must("DQBUF", ioctl(fd, VIDIOC_DQBUF, &b));
		if (b.index >= BUFFERS || b.m.fd != dma_buf[b.index] || b.flags & V4L2_BUF_FLAG_ERROR) {
			printf("DQBUF: index %u fd %d flags %#x\n", b.index, b.m.fd, b.flags);
			return 1;
		}
		if (file)
			copy_out(b.index, b.bytesused, file);
		else if (frame == 0)
			puts("streaming");
		queue_buffer(b.index);
	}
	must("STREAMOFF", ioctl(fd, VIDIOC_STREAMOFF, &type));
	if (file)
		must("writing", fclose(file));
	return 0;
}
