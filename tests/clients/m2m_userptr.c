/*
 * A memory-to-memory program of the plain kind: user pointers on both queues,
 * as in the V4L2 documentation's pages on stateful encoders and decoders. It
 * knows nothing of vidcompat.
 *
 * Frames (or, for a decoder, pieces of a stream) come from a file and go to
 * the OUTPUT queue; what the CAPTURE queue gives goes to another file. The
 * buffers are malloc's, so they do not begin on a page, and each index has two
 * that take turns. Single- or multi-planar is what the device has.
 *
 * Each queue's doings are told in lines of its own ("out: ", "cap: ", "dev: "),
 * because how the two interleave is chance.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAX_BUFFERS 16

struct queue {
	const char *name;
	unsigned type;
	unsigned count;
	size_t length;                      /* of a buffer, in bytes */
	unsigned char *memory[MAX_BUFFERS][2];
	unsigned turn[MAX_BUFFERS];
};

static struct queue out = { .name = "out" }, cap = { .name = "cap" };
static int fd, mplane, threads, decoder;
static unsigned stop_command;
static size_t piece;                        /* bytes of input for each OUTPUT buffer */
static unsigned sent, returned, received;
static int input_ended;
static volatile int all_sent;
static FILE *input, *output;

static void fail(const char *what)
{
	printf("dev: %s: %s\n", what, strerrorname_np(errno));
	exit(1);
}

static int xioctl(unsigned long request, void *argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result == -1 && errno == EINTR);
	return result;
}

/* The two forms of a buffer, as one. */
static struct v4l2_buffer buffer_of(struct queue *q, struct v4l2_plane *plane)
{
	struct v4l2_buffer b = { .type = q->type, .memory = V4L2_MEMORY_USERPTR };

	memset(plane, 0, sizeof(*plane));
	if (mplane) {
		b.m.planes = plane;
		b.length = 1;
	}
	return b;
}

static unsigned bytes_of(const struct v4l2_buffer *b)
{
	return mplane ? b->m.planes[0].bytesused : b->bytesused;
}

static void set_format(struct queue *q, unsigned width, unsigned height, unsigned fourcc)
{
	struct v4l2_format f = { .type = q->type };

	if (xioctl(VIDIOC_G_FMT, &f) == -1)
		fail("G_FMT");
	if (mplane) {
		if (width) {
			f.fmt.pix_mp.width = width;
			f.fmt.pix_mp.height = height;
			f.fmt.pix_mp.pixelformat = fourcc;
			f.fmt.pix_mp.plane_fmt[0].bytesperline = 0;
			f.fmt.pix_mp.plane_fmt[0].sizeimage = 0;
		}
	} else if (width) {
		f.fmt.pix.width = width;
		f.fmt.pix.height = height;
		f.fmt.pix.pixelformat = fourcc;
		f.fmt.pix.bytesperline = 0;
		f.fmt.pix.sizeimage = 0;
	}
	if (width && xioctl(VIDIOC_S_FMT, &f) == -1)
		fail("S_FMT");
	fourcc = mplane ? f.fmt.pix_mp.pixelformat : f.fmt.pix.pixelformat;
	q->length = mplane ? f.fmt.pix_mp.plane_fmt[0].sizeimage : f.fmt.pix.sizeimage;
	printf("%s: %ux%u %.4s, %zu bytes\n", q->name, mplane ? f.fmt.pix_mp.width : f.fmt.pix.width,
	       mplane ? f.fmt.pix_mp.height : f.fmt.pix.height, (const char *)&fourcc, q->length);
}

static void request_buffers(struct queue *q, unsigned count)
{
	struct v4l2_requestbuffers r = { .count = count, .type = q->type, .memory = V4L2_MEMORY_USERPTR };

	if (xioctl(VIDIOC_REQBUFS, &r) == -1)
		fail("REQBUFS USERPTR");
	q->count = r.count < MAX_BUFFERS ? r.count : MAX_BUFFERS;
	for (unsigned i = 0; i < q->count; i++)
		for (int two = 0; two < 2; two++) {
			/* Large blocks begin 16 bytes into a page. */
			q->memory[i][two] = malloc(q->length < 200000 ? 200000 : q->length);
			if (!q->memory[i][two])
				fail("malloc");
			if ((size_t)q->memory[i][two] % sysconf(_SC_PAGESIZE) == 0) {
				printf("dev: malloc gave whole pages, which is not what this program is for\n");
				exit(1);
			}
		}
}

static void queue_buffer(struct queue *q, unsigned index, unsigned bytesused)
{
	struct v4l2_plane plane;
	struct v4l2_buffer b = buffer_of(q, &plane);
	void *memory = q->memory[index][q->turn[index]];

	b.index = index;
	if (q == &out) {
		/* These go to the CAPTURE buffer that is made of this one. */
		b.timestamp.tv_sec = 1000 + sent;
		b.timestamp.tv_usec = 7 * sent;
		b.flags = V4L2_BUF_FLAG_TIMECODE;
		b.timecode.type = V4L2_TC_TYPE_25FPS;
		b.timecode.frames = sent % 25;
		b.field = V4L2_FIELD_NONE;
	}
	if (mplane) {
		plane.m.userptr = (unsigned long)memory;
		plane.length = q->length;
		plane.bytesused = bytesused;
	} else {
		b.m.userptr = (unsigned long)memory;
		b.length = q->length;
		b.bytesused = bytesused;
	}
	if (xioctl(VIDIOC_QBUF, &b) == -1)
		fail(q == &out ? "QBUF of OUTPUT" : "QBUF of CAPTURE");
}

/* Fills the other memory of this index and queues it, until the input ends. */
static void send_next(unsigned index)
{
	size_t want = piece ? piece : out.length, have;

	if (input_ended)
		return;
	out.turn[index] ^= 1;
	have = fread(out.memory[index][out.turn[index]], 1, want, input);
	if (have == 0 || (have < want && !piece)) {
		input_ended = 1;
		all_sent = !stop_command;
		return;
	}
	queue_buffer(&out, index, have);
	sent++;
}

/* Only when the device is done with all that it was sent: whether it is still at
 * its last frame or not decides what it marks as the last one. It gives back the
 * OUTPUT buffer first (vicodec-core.c, device_run); a STOP before it gives back
 * the CAPTURE buffer too would mark an empty one that comes before the frame. */
static void stop(void)
{
	/* The command of a decoder has another struct, with the command first too. */
	struct v4l2_encoder_cmd e = { .cmd = V4L2_ENC_CMD_STOP };
	struct v4l2_decoder_cmd d = { .cmd = V4L2_DEC_CMD_STOP };

	usleep(200000);
	if (decoder ? xioctl(VIDIOC_DECODER_CMD, &d) : xioctl(VIDIOC_ENCODER_CMD, &e))
		fail("STOP");
	printf("out: STOP after %u\n", sent);
	all_sent = 1;
}

static void stream(struct queue *q, unsigned long request, const char *what)
{
	int type = q->type;

	if (xioctl(request, &type) == -1)
		fail(what);
}

/* DQBUF: 0, or the errno. What came must be a memory that was queued. */
static int dequeue(struct queue *q, struct v4l2_buffer *b, struct v4l2_plane *plane)
{
	unsigned long pointer;

	*b = buffer_of(q, plane);
	if (xioctl(VIDIOC_DQBUF, b) == -1)
		return errno;
	pointer = mplane ? plane->m.userptr : b->m.userptr;
	if (b->index >= q->count || (void *)pointer != q->memory[b->index][q->turn[b->index]]) {
		printf("%s: DQBUF: another pointer than was queued\n", q->name);
		exit(1);
	}
	printf("%s: sequence %u bytes %u flags %#x field %u time %lld.%06lld timecode frame %u\n", q->name, b->sequence,
	       bytes_of(b), b->flags, b->field, (long long)b->timestamp.tv_sec, (long long)b->timestamp.tv_usec,
	       b->flags & V4L2_BUF_FLAG_TIMECODE ? b->timecode.frames : 0);
	return 0;
}

/* One OUTPUT buffer back and the next piece off: 0, or the errno of DQBUF. */
static int out_step(void)
{
	struct v4l2_plane plane;
	struct v4l2_buffer b;
	int error = dequeue(&out, &b, &plane);

	if (!error) {
		returned++;
		send_next(b.index);
		if (input_ended && !all_sent && returned == sent)
			stop();
	}
	return error;
}

/* One CAPTURE buffer: 0, 1 after the last one, or minus the errno of DQBUF. */
static int cap_step(void)
{
	struct v4l2_plane plane;
	struct v4l2_buffer b;
	int error = dequeue(&cap, &b, &plane);

	if (error)
		return -error;
	received++;
	if (fwrite(cap.memory[b.index][cap.turn[b.index]], 1, bytes_of(&b), output) != bytes_of(&b))
		fail("writing");
	if (b.flags & V4L2_BUF_FLAG_LAST) {
		error = dequeue(&cap, &b, &plane);
		printf("cap: after the last: %s\n", error ? strerrorname_np(error) : "a buffer");
		return 1;
	}
	/* Memory that the driver left alone would show. */
	cap.turn[b.index] ^= 1;
	memset(cap.memory[b.index][cap.turn[b.index]], 0x5a, cap.length);
	queue_buffer(&cap, b.index, 0);
	return !stop_command && all_sent && received == sent;
}

static void start_capture(unsigned count, unsigned width, unsigned height, unsigned fourcc)
{
	set_format(&cap, width, height, fourcc);
	request_buffers(&cap, count);
	for (unsigned i = 0; i < cap.count; i++)
		queue_buffer(&cap, i, 0);
	stream(&cap, VIDIOC_STREAMON, "STREAMON of CAPTURE");
}

static int next_event(void)
{
	struct v4l2_event event = { 0 };

	if (xioctl(VIDIOC_DQEVENT, &event) == -1)
		fail("DQEVENT");
	printf("dev: event %u, changes %#x\n", event.type,
	       event.type == V4L2_EVENT_SOURCE_CHANGE ? event.u.src_change.changes : 0);
	return event.type;
}

static void *send_all(void *unused)
{
	(void)unused;
	while (!all_sent)
		if (out_step())
			fail("DQBUF of OUTPUT");
	return NULL;
}

/* poll() for both queues and events, until the last frame. */
static void poll_loop(unsigned count)
{
	int capturing = !decoder, ended = 0;

	while (!ended) {
		int error = 0;
		struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT | POLLPRI };
		int ready = poll(&p, 1, 10000);

		if (ready == -1)
			fail("poll");
		if (ready == 0) {
			printf("dev: nothing within 10 seconds\n");
			exit(1);
		}
		if (p.revents & POLLPRI && next_event() == V4L2_EVENT_SOURCE_CHANGE && !capturing) {
			start_capture(count, 0, 0, 0);
			capturing = 1;
		}
		if (p.revents & POLLOUT && !all_sent) {
			error = out_step();
			if (error && error != EAGAIN)
				fail("DQBUF of OUTPUT");
		}
		if (capturing && p.revents & POLLIN) {
			ended = cap_step();
			if (ended < 0 && ended != -EAGAIN) {
				errno = -ended;
				fail("DQBUF of CAPTURE");
			}
			ended = ended > 0;
		}
		/* All pieces are on their way: POLLOUT is set for ever. */
		if ((all_sent || error == EAGAIN) && !(p.revents & (POLLIN | POLLPRI)))
			usleep(2000);
	}
}

int main(int argc, char **argv)
{
	unsigned width = 320, height = 180, from = 0, to = 0, count = 4;
	const char *device = NULL;
	int option;

	while ((option = getopt(argc, argv, "d:i:o:w:h:F:f:b:p:eDt")) != -1) {
		switch (option) {
		case 'd': device = optarg; break;
		case 'i': input = fopen(optarg, "r"); break;
		case 'o': output = fopen(optarg, "w"); break;
		case 'w': width = atoi(optarg); break;
		case 'h': height = atoi(optarg); break;
		case 'F': memcpy(&from, optarg, 4); break;
		case 'f': memcpy(&to, optarg, 4); break;
		case 'b': count = atoi(optarg); break;
		case 'p': piece = atoi(optarg); break;
		case 'e': stop_command = 1; break;
		case 'D': stop_command = 1; decoder = 1; break;
		case 't': threads = 1; break;
		default: device = NULL; optind = argc; break;
		}
	}
	if (!device || !input || !output || !from || (!to && !decoder) || (threads && decoder)) {
		fprintf(stderr, "usage: %s -d DEVICE -i FILE -o FILE -F FOURCC [-f FOURCC] [-w WIDTH] [-h HEIGHT]\n"
			"	[-b BUFFERS] [-p BYTES] [-e | -D] [-t]\n"
			"-F -f  formats of OUTPUT and CAPTURE     -p  so many bytes of the input for each OUTPUT buffer\n"
			"-e     an encoder, which is drained      -D  a decoder, which says when CAPTURE may begin\n"
			"-t     a thread for each queue, asleep in DQBUF, instead of poll()\n", argv[0]);
		return 2;
	}
	fd = open(device, O_RDWR | (threads ? 0 : O_NONBLOCK));
	if (fd == -1)
		fail("open");
	struct v4l2_capability capability;
	if (xioctl(VIDIOC_QUERYCAP, &capability) == -1)
		fail("QUERYCAP");
	mplane = !!(capability.device_caps & V4L2_CAP_VIDEO_M2M_MPLANE);
	if (!mplane && !(capability.device_caps & V4L2_CAP_VIDEO_M2M)) {
		printf("dev: not a memory-to-memory device: %#x\n", capability.device_caps);
		return 1;
	}
	out.type = mplane ? V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE : V4L2_BUF_TYPE_VIDEO_OUTPUT;
	cap.type = mplane ? V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE : V4L2_BUF_TYPE_VIDEO_CAPTURE;
	printf("dev: %s-planar\n", mplane ? "multi" : "single");
	if (stop_command) {
		unsigned kinds[] = { V4L2_EVENT_EOS, V4L2_EVENT_SOURCE_CHANGE };

		for (int i = 0; i < 1 + decoder; i++) {
			struct v4l2_event_subscription s = { .type = kinds[i] };

			if (xioctl(VIDIOC_SUBSCRIBE_EVENT, &s) == -1)
				fail("SUBSCRIBE_EVENT");
		}
	}
	set_format(&out, width, height, from);
	request_buffers(&out, count);
	for (unsigned i = 0; i < out.count; i++)
		send_next(i);
	stream(&out, VIDIOC_STREAMON, "STREAMON of OUTPUT");
	if (!decoder)
		start_capture(count, width, height, to);
	if (threads) {
		pthread_t sender;
		int ended = 0;

		pthread_create(&sender, NULL, send_all, NULL);
		while (!ended)
			ended = cap_step();
		if (ended < 0) {
			errno = -ended;
			fail("DQBUF of CAPTURE");
		}
		pthread_join(sender, NULL);
	} else {
		poll_loop(count);
	}
	/* What the driver has done with by now, so that every run tells the same. */
	while (returned < sent && !out_step())
		;
	for (struct pollfd p = { .fd = fd, .events = POLLPRI }; stop_command && poll(&p, 1, 200) > 0;)
		next_event();
	stream(&out, VIDIOC_STREAMOFF, "STREAMOFF of OUTPUT");
	stream(&cap, VIDIOC_STREAMOFF, "STREAMOFF of CAPTURE");
	if (fclose(output))
		fail("writing");
	printf("dev: %u sent, %u received\n", sent, received);
	return 0;
}
