/*
 * Live video on a framebuffer, the way it was done before DRM: the screen
 * itself is the buffer. The program maps /dev/fb0, asks the camera for pictures
 * as the screen has them, and hands it that mapping as user pointers. No frame
 * passes through the program. It knows nothing of vidcompat.
 *
 *   fb_capture [-d CAMERA] [-b FRAMEBUFFER] [-n FRAMES] [-w WIDTH -h HEIGHT]
 *
 * Without -w and -h the picture is as large as the screen; a smaller one is in
 * the upper left corner. What fails is told with its errno, and the exit status
 * is 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <linux/videodev2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_BUFFERS 32

static int camera;
static unsigned char *screen;
static size_t length; /* of a picture, with the rest of each screen line */

static void fail(const char *what)
{
	fprintf(stderr, "fb_capture: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int xioctl(int fd, unsigned long request, void *argument)
{
	int result;

	do
		result = ioctl(fd, request, argument);
	while (result == -1 && errno == EINTR);
	return result;
}

/* The camera's name for pixels as this screen has them. */
static unsigned pixel_format(const struct fb_var_screeninfo *var)
{
	int blue_first = var->red.offset > var->blue.offset;

	switch (var->bits_per_pixel) {
	case 16: return V4L2_PIX_FMT_RGB565;
	case 24: return blue_first ? V4L2_PIX_FMT_BGR24 : V4L2_PIX_FMT_RGB24;
	case 32: return blue_first ? V4L2_PIX_FMT_XBGR32 : V4L2_PIX_FMT_RGBX32;
	}
	fprintf(stderr, "fb_capture: no format for %u bits per pixel\n", var->bits_per_pixel);
	exit(1);
}

static void map_screen(const char *name, struct fb_var_screeninfo *var, struct fb_fix_screeninfo *fix)
{
	int fb = open(name, O_RDWR);

	if (fb == -1)
		fail(name);
	if (xioctl(fb, FBIOGET_VSCREENINFO, var) == -1 || xioctl(fb, FBIOGET_FSCREENINFO, fix) == -1)
		fail("FBIOGET_SCREENINFO");
	/* The mode that it has, to be shown now: nothing may have used this screen so far. */
	var->activate = FB_ACTIVATE_NOW | FB_ACTIVATE_FORCE;
	if (xioctl(fb, FBIOPUT_VSCREENINFO, var) == -1)
		fail("FBIOPUT_VSCREENINFO");
	screen = mmap(NULL, fix->smem_len, PROT_READ | PROT_WRITE, MAP_SHARED, fb, 0);
	if (screen == MAP_FAILED)
		fail("mmap of the framebuffer");
}

/* Lines of the picture are to be as far apart as those of the screen. */
static void set_format(unsigned width, unsigned height, unsigned fourcc, const struct fb_fix_screeninfo *fix)
{
	struct v4l2_format f = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };

	f.fmt.pix.width = width;
	f.fmt.pix.height = height;
	f.fmt.pix.pixelformat = fourcc;
	f.fmt.pix.field = V4L2_FIELD_ANY;
	f.fmt.pix.bytesperline = fix->line_length;
	if (xioctl(camera, VIDIOC_S_FMT, &f) == -1)
		fail("S_FMT");
	if (f.fmt.pix.width != width || f.fmt.pix.height != height || f.fmt.pix.pixelformat != fourcc ||
	    f.fmt.pix.bytesperline != fix->line_length || f.fmt.pix.sizeimage > fix->smem_len) {
		fprintf(stderr, "fb_capture: S_FMT: the camera has no pictures that fit the screen: it offers %ux%u, %u bytes per line\n",
			f.fmt.pix.width, f.fmt.pix.height, f.fmt.pix.bytesperline);
		exit(1);
	}
	length = f.fmt.pix.sizeimage;
}

static void queue_buffer(unsigned index)
{
	struct v4l2_buffer b = {
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
		.length = length,
	};

	/* All of them are the screen. */
	b.m.userptr = (unsigned long)screen;
	if (xioctl(camera, VIDIOC_QBUF, &b) == -1)
		fail("QBUF of the screen");
}

int main(int argc, char **argv)
{
	const char *camera_name = "/dev/video0", *fb_name = "/dev/fb0";
	unsigned frames = 60, width = 0, height = 0;
	struct fb_var_screeninfo var;
	struct fb_fix_screeninfo fix;
	int option;

	while ((option = getopt(argc, argv, "d:b:n:w:h:")) != -1) {
		switch (option) {
		case 'd': camera_name = optarg; break;
		case 'b': fb_name = optarg; break;
		case 'n': frames = atoi(optarg); break;
		case 'w': width = atoi(optarg); break;
		case 'h': height = atoi(optarg); break;
		default:
			fprintf(stderr, "usage: %s [-d CAMERA] [-b FRAMEBUFFER] [-n FRAMES] [-w WIDTH -h HEIGHT]\n", argv[0]);
			return 2;
		}
	}
	map_screen(fb_name, &var, &fix);
	camera = open(camera_name, O_RDWR);
	if (camera == -1)
		fail(camera_name);
	set_format(width ? width : var.xres, height ? height : var.yres, pixel_format(&var), &fix);

	struct v4l2_requestbuffers request = {
		.count = 2,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
	};
	enum v4l2_buf_type type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

	if (xioctl(camera, VIDIOC_REQBUFS, &request) == -1)
		fail("REQBUFS USERPTR");
	for (unsigned i = 0; i < request.count && i < MAX_BUFFERS; i++)
		queue_buffer(i);
	if (xioctl(camera, VIDIOC_STREAMON, &type) == -1)
		fail("STREAMON");
	for (unsigned frame = 0; frame < frames; frame++) {
		struct v4l2_buffer b = { .type = type, .memory = V4L2_MEMORY_USERPTR };

		if (xioctl(camera, VIDIOC_DQBUF, &b) == -1)
			fail("DQBUF");
		if ((void *)b.m.userptr != screen || b.flags & V4L2_BUF_FLAG_ERROR) {
			fprintf(stderr, "fb_capture: DQBUF: flags %#x, or not the screen\n", b.flags);
			return 1;
		}
		if (frame + 1 < frames)
			queue_buffer(b.index);
	}
	if (xioctl(camera, VIDIOC_STREAMOFF, &type) == -1)
		fail("STREAMOFF");
	printf("frames=%u screen=%ux%u\n", frames, var.xres, var.yres);
	return 0;
}
