/*
 * What it costs to redraw a whole screen: a program maps a framebuffer and
 * copies one of two pictures into it, in turns, which is what programs with a
 * picture of their own in memory do (SDL, MPlayer, Qt). It knows nothing of
 * vidcompat.
 *
 *   fb_redraw [-d FRAMEBUFFER] [-n FRAMES] [-r RATE] [-m WIDTHxHEIGHTxBITS]
 *             [-i SECONDS] [-w] [-c CPU.STAT]
 *
 * -r: so many pictures a second; without it as many as it can. -m: sets this
 * mode first. -i: instead, one picture, and then nothing for so long. -w: waits
 * for the vertical blank after each picture. -c: cpu.stat of the daemon's cgroup.
 * A line of figures, times in us per picture (with -i: per second); busy is all
 * processors, with what the kernel does on its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const char *cpu_file;

static void fail(const char *what)
{
	fprintf(stderr, "fb_redraw: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

struct spent {
	int64_t wall, client;       /* ns */
	long long daemon;           /* us */
	long long busy;             /* ticks of 10 ms */
};

static struct spent spent(void)
{
	long long user = 0, nice = 0, system = 0, idle, wait, irq = 0, softirq = 0, daemon = 0;
	FILE *file = fopen("/proc/stat", "r");

	if (file) {
		if (fscanf(file, "cpu %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &system, &idle, &wait, &irq,
			   &softirq) != 7)
			user = nice = system = irq = softirq = 0;
		fclose(file);
	}
	file = cpu_file ? fopen(cpu_file, "r") : NULL;
	if (file) {
		if (fscanf(file, "usage_usec %lld", &daemon) != 1)
			daemon = 0;
		fclose(file);
	}
	return (struct spent){
		.wall = now(CLOCK_MONOTONIC),
		.client = now(CLOCK_PROCESS_CPUTIME_ID),
		.daemon = daemon,
		.busy = user + nice + system + irq + softirq,
	};
}

static void set_mode(int fb, const char *text)
{
	struct fb_var_screeninfo var;
	unsigned width, height, bits;

	if (sscanf(text, "%ux%ux%u", &width, &height, &bits) != 3) {
		fprintf(stderr, "fb_redraw: no mode: %s\n", text);
		exit(2);
	}
	if (ioctl(fb, FBIOGET_VSCREENINFO, &var) == -1)
		fail("FBIOGET_VSCREENINFO");
	var.xres = var.xres_virtual = width;
	var.yres = var.yres_virtual = height;
	var.xoffset = var.yoffset = 0;
	var.bits_per_pixel = bits;
	var.activate = FB_ACTIVATE_NOW;
	if (ioctl(fb, FBIOPUT_VSCREENINFO, &var) == -1)
		fail(text);
	if (var.xres != width || var.yres != height || var.bits_per_pixel != bits) {
		fprintf(stderr, "fb_redraw: %s: %ux%ux%u instead\n", text, var.xres, var.yres, var.bits_per_pixel);
		exit(1);
	}
}

/* Every byte is another one in the second picture. */
static unsigned char *picture(size_t size, unsigned which)
{
	unsigned char *bytes = malloc(size);

	if (!bytes)
		fail("malloc");
	for (size_t at = 0; at < size; at++)
		bytes[at] = (unsigned char)(at / 7 + at / 4096) ^ (which ? 0xff : 0);
	return bytes;
}

static void sleep_until(int64_t ns)
{
	struct timespec t = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

int main(int argc, char **argv)
{
	const char *name = "/dev/fb0", *mode = NULL;
	unsigned frames = 100, rate = 0, idle = 0;
	int wait = 0, option;

	while ((option = getopt(argc, argv, "d:n:r:m:i:wc:")) != -1) {
		switch (option) {
		case 'd': name = optarg; break;
		case 'n': frames = atoi(optarg); break;
		case 'r': rate = atoi(optarg); break;
		case 'm': mode = optarg; break;
		case 'i': idle = atoi(optarg); break;
		case 'w': wait = 1; break;
		case 'c': cpu_file = optarg; break;
		default:
			fprintf(stderr, "usage: %s [-d FRAMEBUFFER] [-n FRAMES] [-r RATE] [-m WIDTHxHEIGHTxBITS]"
				" [-i SECONDS] [-w] [-c CPU.STAT]\n", argv[0]);
			return 2;
		}
	}

	struct fb_var_screeninfo var;
	struct fb_fix_screeninfo fix;
	int fb = open(name, O_RDWR);

	if (fb == -1)
		fail(name);
	if (mode)
		set_mode(fb, mode);
	if (ioctl(fb, FBIOGET_VSCREENINFO, &var) == -1 || ioctl(fb, FBIOGET_FSCREENINFO, &fix) == -1)
		fail("FBIOGET_SCREENINFO");
	unsigned char *screen = mmap(NULL, fix.smem_len, PROT_READ | PROT_WRITE, MAP_SHARED, fb, 0);

	if (screen == MAP_FAILED)
		fail("mmap of the framebuffer");
	size_t size = (size_t)fix.line_length * var.yres;
	unsigned char *pictures[] = { picture(size, 0), picture(size, 1) };

	if (size > fix.smem_len) {
		fprintf(stderr, "fb_redraw: the screen is larger than its memory\n");
		return 1;
	}
	/* Pages are there, and who watches has begun to. */
	for (unsigned i = 0; i < 4; i++) {
		memcpy(screen, pictures[i % 2], size);
		usleep(100000);
	}

	double count = idle ? idle : frames;
	struct spent a = spent();

	if (idle)
		sleep(idle);
	for (unsigned frame = 0; !idle && frame < frames; frame++) {
		uint32_t crtc = 0;

		memcpy(screen, pictures[frame % 2], size);
		if (wait && ioctl(fb, FBIO_WAITFORVSYNC, &crtc) == -1)
			fail("FBIO_WAITFORVSYNC");
		if (rate)
			sleep_until(a.wall + (frame + 1) * 1000000000LL / rate);
	}

	struct spent b = spent();

	printf("%s=%.0f rate=%.2f wall_us=%.1f client_us=%.1f daemon_us=%.1f busy_us=%.1f bytes=%zu\n",
	       idle ? "seconds" : "frames", count, count / ((b.wall - a.wall) / 1e9), (b.wall - a.wall) / 1e3 / count,
	       (b.client - a.client) / 1e3 / count, (b.daemon - a.daemon) / count, (b.busy - a.busy) * 1e4 / count,
	       size);
	return 0;
}
