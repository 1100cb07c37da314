/*
 * From a camera to a codec, or any memory-to-memory device, without a copy by
 * the program, the old way: the camera's own buffers (MMAP), by the pointers at
 * which they are mapped, are user pointers for the codec's OUTPUT queue. It
 * knows nothing of vidcompat.
 *
 *   camera_to_codec -c CAMERA -d CODEC -F FOURCC -f FOURCC -o FILE [-i FILE]
 *                   [-w WIDTH -h HEIGHT] [-n FRAMES] [-W]
 *
 * -F is the format of the camera and of OUTPUT, -f that of CAPTURE. What the
 * codec makes goes to -o, the frames that it was given to -i, as they were when
 * it had been given them. With -W it says "streaming" after the last frame and
 * goes on when its stdin ends.
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
#include <unistd.h>

#define BUFFERS 4

struct queue {
	const char *name;
	int fd, type, memory;
	size_t length;
	void *buffer[BUFFERS];
};

static struct queue camera = { "camera", -1, V4L2_BUF_TYPE_VIDEO_CAPTURE, V4L2_MEMORY_MMAP, 0, { 0 } };
static struct queue out = { "OUTPUT", -1, V4L2_BUF_TYPE_VIDEO_OUTPUT, V4L2_MEMORY_USERPTR, 0, { 0 } };
static struct queue cap = { "CAPTURE", -1, V4L2_BUF_TYPE_VIDEO_CAPTURE, V4L2_MEMORY_USERPTR, 0, { 0 } };

static void must(struct queue *q, const char *call, int result)
{
	if (result == -1) {
		printf("%s: %s: %s\n", q->name, call, strerrorname_np(errno));
		exit(1);
	}
}

static int xioctl(int fd, unsigned long request, void *argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result == -1 && errno == EINTR);
	return result;
}

static void set_up(struct queue *q, unsigned width, unsigned height, unsigned fourcc)
{
	struct v4l2_format f = { .type = q->type };
	struct v4l2_requestbuffers r = { .count = BUFFERS, .type = q->type, .memory = q->memory };

	f.fmt.pix.width = width;
	f.fmt.pix.height = height;
	f.fmt.pix.pixelformat = fourcc;
	must(q, "S_FMT", xioctl(q->fd, VIDIOC_S_FMT, &f));
	if (f.fmt.pix.width != width || f.fmt.pix.height != height || f.fmt.pix.pixelformat != fourcc) {
		printf("%s: S_FMT: %ux%u %.4s\n", q->name, f.fmt.pix.width, f.fmt.pix.height,
		       (const char *)&f.fmt.pix.pixelformat);
		exit(1);
	}
	q->length = f.fmt.pix.sizeimage;
	must(q, "REQBUFS", xioctl(q->fd, VIDIOC_REQBUFS, &r));
	if (r.count != BUFFERS) {
		printf("%s: REQBUFS: %u buffers\n", q->name, r.count);
		exit(1);
	}
}

static void queue_buffer(struct queue *q, unsigned index, void *pointer, unsigned bytesused)
{
	struct v4l2_buffer b = { .index = index, .type = q->type, .memory = q->memory };

	if (q->memory == V4L2_MEMORY_USERPTR) {
		b.m.userptr = (unsigned long)pointer;
		b.length = q->length;
	}
	b.bytesused = bytesused;
	must(q, "QBUF", xioctl(q->fd, VIDIOC_QBUF, &b));
}

static struct v4l2_buffer dequeue(struct queue *q)
{
	struct v4l2_buffer b = { .type = q->type, .memory = q->memory };

	must(q, "DQBUF", xioctl(q->fd, VIDIOC_DQBUF, &b));
	if (b.index >= BUFFERS || b.flags & V4L2_BUF_FLAG_ERROR) {
		printf("%s: DQBUF: index %u, flags %#x\n", q->name, b.index, b.flags);
		exit(1);
	}
	return b;
}

static void stream(struct queue *q, unsigned long request)
{
	must(q, "STREAMON or STREAMOFF", xioctl(q->fd, request, &q->type));
}

static void map_camera(void)
{
	for (unsigned i = 0; i < BUFFERS; i++) {
		struct v4l2_buffer b = { .index = i, .type = camera.type, .memory = camera.memory };

		must(&camera, "QUERYBUF", xioctl(camera.fd, VIDIOC_QUERYBUF, &b));
		camera.buffer[i] = mmap(NULL, b.length, PROT_READ | PROT_WRITE, MAP_SHARED, camera.fd, b.m.offset);
		must(&camera, "mmap", camera.buffer[i] == MAP_FAILED ? -1 : 0);
		queue_buffer(&camera, i, NULL, 0);
	}
}

static void save(FILE *file, const void *bytes, size_t count)
{
	if (file && fwrite(bytes, 1, count, file) != count)
		must(&camera, "writing", -1);
}

int main(int argc, char **argv)
{
	unsigned width = 640, height = 360, from = 0, to = 0, frames = 20;
	FILE *input = NULL, *output = NULL;
	int option, wait = 0;

	while ((option = getopt(argc, argv, "c:d:F:f:o:i:w:h:n:W")) != -1) {
		switch (option) {
		case 'c': camera.fd = open(optarg, O_RDWR); break;
		case 'd': out.fd = cap.fd = open(optarg, O_RDWR); break;
		case 'F': memcpy(&from, optarg, 4); break;
		case 'f': memcpy(&to, optarg, 4); break;
		case 'o': output = fopen(optarg, "w"); break;
		case 'i': input = fopen(optarg, "w"); break;
		case 'w': width = atoi(optarg); break;
		case 'h': height = atoi(optarg); break;
		case 'n': frames = atoi(optarg); break;
		case 'W': wait = 1; break;
		default: optind = argc + 1; break;
		}
	}
	if (optind != argc || camera.fd == -1 || out.fd == -1 || !from || !to || !output) {
		fprintf(stderr, "usage: %s -c CAMERA -d CODEC -F FOURCC -f FOURCC -o FILE [-i FILE]\n"
			"	[-w WIDTH -h HEIGHT] [-n FRAMES] [-W]\n", argv[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	set_up(&camera, width, height, from);
	set_up(&out, width, height, from);
	set_up(&cap, width, height, to);
	if (camera.length < out.length) {
		printf("camera: buffers of %zu bytes, the codec wants %zu\n", camera.length, out.length);
		return 1;
	}
	map_camera();
	for (unsigned i = 0; i < BUFFERS; i++) {
		cap.buffer[i] = malloc(cap.length);
		memset(cap.buffer[i], 0x5a, cap.length);
		queue_buffer(&cap, i, cap.buffer[i], 0);
	}
	stream(&camera, VIDIOC_STREAMON);
	stream(&cap, VIDIOC_STREAMON);
	for (unsigned frame = 0; frame < frames; frame++) {
		struct v4l2_buffer shot = dequeue(&camera), made, given;

		queue_buffer(&out, shot.index, camera.buffer[shot.index], shot.bytesused);
		if (frame == 0)
			stream(&out, VIDIOC_STREAMON);
		made = dequeue(&cap);
		given = dequeue(&out);
		if (given.m.userptr != (unsigned long)camera.buffer[shot.index]) {
			printf("OUTPUT: DQBUF: another pointer than was queued\n");
			return 1;
		}
		save(output, cap.buffer[made.index], made.bytesused);
		save(input, camera.buffer[shot.index], shot.bytesused);
		memset(cap.buffer[made.index], 0x5a, cap.length);
		queue_buffer(&cap, made.index, cap.buffer[made.index], 0);
		queue_buffer(&camera, shot.index, NULL, 0);
	}
	if (wait) {
		puts("streaming");
		while (getchar() != EOF)
			;
	}
	stream(&camera, VIDIOC_STREAMOFF);
	stream(&out, VIDIOC_STREAMOFF);
	stream(&cap, VIDIOC_STREAMOFF);
	if (fclose(output) || (input && fclose(input)))
		must(&camera, "writing", -1);
	printf("frames %u\n", frames);
	return 0;
}
