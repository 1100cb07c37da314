/*
 * A program that draws on a framebuffer by write() until its stdin ends, and
 * looks at every byte: what a daemon that is killed under it may neither stop
 * nor spoil.
 *
 *   fb_survivor DEVICE
 *
 * A round is a new file of the node, the screen written from top to bottom in
 * pieces, each where the file's position is, the answer of a write past the end,
 * what the screen is (FBIOGET_VSCREENINFO, _FSCREENINFO), a palette set and read,
 * and the whole screen read again. Pieces differ from each other and from those
 * of the round before, so a piece that was written twice, or not, or elsewhere, is
 * seen. At the end it tells its rounds and the longest time that one call took.
 * It knows nothing of vidcompat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define PIECE 10000

static int fd;
static unsigned rounds, longest_ms;

static void fail(const char *what)
{
	printf("failed: %s: %s in round %u\n", what, strerrorname_np(errno), rounds);
	exit(1);
}

static void wrong(const char *what, long at)
{
	printf("wrong: %s at %ld in round %u\n", what, at, rounds);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void took(double since)
{
	double ms = now() - since;

	if (ms > longest_ms)
		longest_ms = ms;
}

static void xioctl(unsigned long request, void *argument, const char *what)
{
	double begun = now();

	if (ioctl(fd, request, argument))
		fail(what);
	took(begun);
}

static unsigned char byte_of(size_t at)
{
	return (at / PIECE * 31 + at * 7 + rounds * 101) & 0xff;
}

static void draw(unsigned char *bytes, size_t size)
{
	size_t at = 0, length;
	ssize_t done;
	double begun;

	for (size_t i = 0; i < size; i++)
		bytes[i] = byte_of(i);
	while (at < size) {
		length = size - at < PIECE ? size - at : PIECE;
		begun = now();
		done = write(fd, bytes + at, length);
		if (done < 0)
			fail("write");
		took(begun);
		if ((size_t)done != length)
			wrong("a short write", at);
		at += done;
	}
	if (write(fd, bytes, 1) != -1 || errno != ENOSPC)
		wrong("a write past the end", size);
}

static void look(unsigned char *bytes, size_t size)
{
	size_t at = 0;
	ssize_t done;
	double begun;

	memset(bytes, 0, size);
	while (at < size) {
		begun = now();
		done = pread(fd, bytes + at, size - at, at);
		if (done <= 0)
			fail("pread");
		took(begun);
		at += done;
	}
	for (size_t i = 0; i < size; i++)
		if (bytes[i] != byte_of(i))
			wrong("another byte", i);
}

static void palette(void)
{
	unsigned short red[2] = { rounds << 8, 0 }, green[2] = { 0, rounds << 8 }, blue[2] = { 0xff00, 0 };
	unsigned short red2[2] = { 1, 1 }, green2[2] = { 1, 1 }, blue2[2] = { 1, 1 };
	struct fb_cmap set = { .start = 1, .len = 2, .red = red, .green = green, .blue = blue };
	struct fb_cmap got = { .start = 1, .len = 2, .red = red2, .green = green2, .blue = blue2 };

	xioctl(FBIOPUTCMAP, &set, "FBIOPUTCMAP");
	xioctl(FBIOGETCMAP, &got, "FBIOGETCMAP");
	if (memcmp(red, red2, sizeof(red)) || memcmp(green, green2, sizeof(green)) ||
	    memcmp(blue, blue2, sizeof(blue)))
		wrong("another palette", 1);
}

int main(int argc, char **argv)
{
	struct pollfd ends = { .fd = 0, .events = POLLIN };
	struct fb_var_screeninfo first, var;
	struct fb_fix_screeninfo fix;
	unsigned char *bytes = NULL;
	size_t size = 0;
	double begun;

	if (argc != 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	do {
		begun = now();
		fd = open(argv[1], O_RDWR);
		if (fd < 0)
			fail("open");
		took(begun);
		xioctl(FBIOGET_VSCREENINFO, &var, "FBIOGET_VSCREENINFO");
		xioctl(FBIOGET_FSCREENINFO, &fix, "FBIOGET_FSCREENINFO");
		if (!bytes) {
			first = var;
			size = fix.smem_len;
			bytes = malloc(size);
			if (!bytes)
				fail("malloc");
		}
		if (memcmp(&var, &first, sizeof(var)) || fix.smem_len != size)
			wrong("another screen", 0);
		draw(bytes, size);
		palette();
		look(bytes, size);
		if (close(fd))
			fail("close");
		if (!rounds++)
			printf("drawing\n");
	} while (poll(&ends, 1, 0) == 0);
	printf("rounds %u longest %u\n", rounds, longest_ms);
	return 0;
}
