/*
 * What a program may ask a framebuffer by ioctl, usual or not: each case says
 * what came of it, byte by byte, in words that are the same at each run. The
 * suite runs it on the real node and on ours.
 *
 *   fb_ioctl_cases NODE
 *
 * It leaves the framebuffer as it was, but for its colours. It knows nothing of
 * vidcompat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define CANARY 0xa5
#define FBIOGET_DMABUF _IOR('F', 0x21, uint64_t)
#define OMAPFB_SYNC_GFX _IO('O', 37)
#define ENTRIES (1U << 21)

static int fb;
/* One writable page with a page behind it that is not there. */
static unsigned char *page;
static unsigned char *readonly;

static void say(const char *format, ...)
{
	va_list rest;

	va_start(rest, format);
	vprintf(format, rest);
	va_end(rest);
	putchar('\n');
	fflush(stdout);
}

static const char *outcome(int result)
{
	static char text[40];

	if (result == -1) {
		const char *name = strerrorname_np(errno);
		return name ? name : "unknown errno";
	}
	snprintf(text, sizeof(text), "%d", result);
	return text;
}

/* What differs from the canary, as hexadecimal; runs of canaries as their length. */
static void say_bytes(const char *name, int result, const unsigned char *bytes, size_t length)
{
	const char *came = outcome(result);
	size_t at = 0;

	printf("%s: %s", name, came);
	while (at < length) {
		size_t run = at;

		while (run < length && bytes[run] == CANARY)
			run++;
		if (run - at >= 4 || run == length) {
			printf(" [%zu]", run - at);
			at = run;
			continue;
		}
		printf(" ");
		for (; at < length && (bytes[at] != CANARY || at < run); at++)
			printf("%02x", bytes[at]);
	}
	putchar('\n');
	fflush(stdout);
}

static void ask(const char *name, unsigned long number, size_t length)
{
	memset(page, CANARY, PAGE);
	say_bytes(name, ioctl(fb, number, page), page, length);
}

static const struct {
	const char *name;
	unsigned long number;
	size_t size;
} known[] = {
	{"FBIOGET_VSCREENINFO", FBIOGET_VSCREENINFO, sizeof(struct fb_var_screeninfo)},
	{"FBIOPUT_VSCREENINFO", FBIOPUT_VSCREENINFO, sizeof(struct fb_var_screeninfo)},
	{"FBIOGET_FSCREENINFO", FBIOGET_FSCREENINFO, sizeof(struct fb_fix_screeninfo)},
	{"FBIOGETCMAP", FBIOGETCMAP, sizeof(struct fb_cmap)},
	{"FBIOPUTCMAP", FBIOPUTCMAP, sizeof(struct fb_cmap)},
	{"FBIOPAN_DISPLAY", FBIOPAN_DISPLAY, sizeof(struct fb_var_screeninfo)},
	{"FBIO_CURSOR", FBIO_CURSOR, sizeof(struct fb_cursor)},
	{"FBIOGET_CON2FBMAP", FBIOGET_CON2FBMAP, sizeof(struct fb_con2fbmap)},
	{"FBIOPUT_CON2FBMAP", FBIOPUT_CON2FBMAP, sizeof(struct fb_con2fbmap)},
	{"FBIOGET_VBLANK", FBIOGET_VBLANK, sizeof(struct fb_vblank)},
	{"FBIO_WAITFORVSYNC", FBIO_WAITFORVSYNC, sizeof(uint32_t)},
	{"FBIO_ALLOC", FBIO_ALLOC, 8},
	{"FBIO_FREE", FBIO_FREE, 8},
	{"FBIOGET_GLYPH", FBIOGET_GLYPH, 8},
	{"FBIOGET_HWCINFO", FBIOGET_HWCINFO, 8},
	{"FBIOPUT_MODEINFO", FBIOPUT_MODEINFO, 8},
	{"FBIOGET_DISPINFO", FBIOGET_DISPINFO, 8},
	{"FBIOGET_DMABUF", FBIOGET_DMABUF, 8},
	{"OMAPFB_SYNC_GFX", OMAPFB_SYNC_GFX, 8},
	{"FBIO_CURSOR of 32 bits", 0xc0484608, 72},
	{"FBIO_CURSOR of 64 bits", 0xc0684608, 104},
};
#define KNOWN (sizeof(known) / sizeof(*known))

static void pointers(void)
{
	size_t at;

	for (at = 0; at < KNOWN; at++) {
		const char *name = known[at].name;
		unsigned long number = known[at].number;
		size_t size = known[at].size;

		say("%s of NULL: %s", name, outcome(ioctl(fb, number, NULL)));
		say("%s of -1: %s", name, outcome(ioctl(fb, number, -1L)));
		say("%s of nothing: %s", name, outcome(ioctl(fb, number, page + PAGE)));
		say("%s of read-only zeroes: %s", name, outcome(ioctl(fb, number, readonly)));
		memset(page, 0, PAGE);
		say("%s with its last byte missing: %s", name,
		    outcome(ioctl(fb, number, page + PAGE - size + 1)));
		memset(page, 0, PAGE);
		say_bytes(name, ioctl(fb, number, page + PAGE - size), page + PAGE - size, size);
	}
}

static void numbers(void)
{
	unsigned long number;
	char name[64];

	for (number = 0x4600; number <= 0x46ff; number++) {
		snprintf(name, sizeof(name), "%#lx", number);
		ask(name, number, 256);
		snprintf(name, sizeof(name), "%#lx with a size", number | 0x80080000UL);
		if (number != (0xff & FBIOGET_DMABUF))
			ask(name, number | 0x80080000UL, 256);
	}
	for (number = 0; number < 32; number++) {
		snprintf(name, sizeof(name), "FBIOPAN_DISPLAY with bit %lu", number);
		if ((FBIOPAN_DISPLAY ^ (1UL << number)) < 0x4600 || (FBIOPAN_DISPLAY ^ (1UL << number)) > 0x46ff)
			ask(name, FBIOPAN_DISPLAY ^ (1UL << number), 256);
	}
#if UINTPTR_MAX > 0xffffffff
	say("sign-extended: %s", outcome(ioctl(fb, 0xffffffff00000000UL | FBIOGET_FSCREENINFO, page)));
#endif
}

/* Colour maps. */

static uint16_t *arrays[4];
static const uint32_t lengths[] = {
	0, 1, 2, 15, 16, 17, 255, 256, 257, 1000, 16000, 16375, 16376, 16377, 16383, 16384, 16385, 20000, 65536,
	300000, ENTRIES, ENTRIES + 1, 0x3fffffff, 0x40000000, 0x7fffffff, 0x80000000, 0xffffffff,
};
#define LENGTHS (sizeof(lengths) / sizeof(*lengths))
static const uint32_t starts[] = {0, 1, 16, 100, 255, 256, 257, 0x7fffffff, 0x80000000, 0xffffffff};
#define STARTS (sizeof(starts) / sizeof(*starts))

static struct fb_cmap cmap(uint32_t start, uint32_t length, int has_transp)
{
	struct fb_cmap cmap = {start, length, arrays[0], arrays[1], arrays[2], has_transp ? arrays[3] : NULL};

	return cmap;
}

/*
 * So many entries of an array are not the canary, of which so many are looked
 * at: the emulator is slow, and what is written behind them stays there until
 * somebody looks at all.
 */
static size_t filled(const uint16_t *array, size_t count)
{
	static const uint16_t canaries[2048] = {[0 ... 2047] = CANARY * 0x101};

	/* In large steps first. */
	while (count >= 2048 && !memcmp(array + count - 2048, canaries, sizeof(canaries)))
		count -= 2048;
	while (count > 0 && array[count - 1] == CANARY * 0x101)
		count--;
	return count;
}

static void say_map(const char *name, uint32_t start, uint32_t length, int result)
{
	const char *came = outcome(result);
	uint32_t hash = 2166136261U;
	size_t count[4];
	int which;

	for (which = 0; which < 4; which++) {
		size_t at;

		count[which] = filled(arrays[which], length < ENTRIES ? 1U << 15 : ENTRIES);
		for (at = 0; at < count[which]; at++)
			hash = (hash ^ arrays[which][at]) * 16777619;
	}
	say("%s %#x+%#x: %s, %zu %zu %zu %zu, %08x", name, start, length, came, count[0], count[1], count[2],
	    count[3], hash);
}

static void get_map(uint32_t start, uint32_t length, int has_transp)
{
	struct fb_cmap map = cmap(start, length, has_transp), before = map;
	int which;

	for (which = 0; which < 4; which++)
		memset(arrays[which], CANARY, 600 * sizeof(**arrays));
	say_map(has_transp ? "get with transp" : "get", start, length, ioctl(fb, FBIOGETCMAP, &map));
	if (memcmp(&map, &before, sizeof(map)))
		say("the struct has changed");
}

static void put_map(uint32_t start, uint32_t length, int has_transp)
{
	struct fb_cmap map = cmap(start, length, has_transp);
	/* No driver has more colours; the rest is what it is. */
	uint32_t count = length < 4096 ? length : 4096;
	uint32_t at;
	int which, result;

	for (which = 0; which < 4; which++)
		for (at = 0; at < count; at++)
			arrays[which][at] = (at * 263 + which * 0x1357 + start + length) & 0xfffe;
	result = ioctl(fb, FBIOPUTCMAP, &map);
	say("put%s %#x+%#x: %s", has_transp ? " with transp" : "", start, length, outcome(result));
	for (which = 0; which < 4; which++)
		memset(arrays[which], CANARY, count * sizeof(**arrays));
}

static void maps(void)
{
	unsigned char *end = page + PAGE;
	size_t at;
	int which;

	for (which = 0; which < 4; which++) {
		arrays[which] = mmap(NULL, ENTRIES * 2 + PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(arrays[which], CANARY, ENTRIES * 2);
		munmap(arrays[which] + ENTRIES, PAGE);
	}
	/* One state to begin with. True colours may have 16 entries that can be changed. */
	put_map(0, 256, 0);
	put_map(0, 16, 0);
	for (at = 0; at < LENGTHS; at++) {
		get_map(0, lengths[at], 0);
		get_map(0, lengths[at], 1);
		put_map(0, lengths[at], 0);
		get_map(0, 256, 1);
		put_map(0, lengths[at], 1);
		get_map(0, 256, 1);
	}
	for (at = 0; at < STARTS; at++) {
		get_map(starts[at], 16, 0);
		put_map(starts[at], 16, 0);
		put_map(starts[at], 16, 1);
		get_map(0, 256, 1);
	}
	put_map(0, 256, 0);
	/* Arrays that are not there, or end too early. */
	for (which = 0; which < 4; which++) {
		static const uint32_t some[] = {0, 4, 256, 257, 20000, 0x40000000};

		for (at = 0; at < sizeof(some) / sizeof(*some); at++) {
			struct fb_cmap map = cmap(0, some[at], 1);
			uint16_t **pointer = (&map.red) + which;
			uint16_t *const bad[] = {NULL, (uint16_t *)(end - 2), (uint16_t *)-2L,
						 (uint16_t *)readonly};
			size_t how;

			for (how = 0; how < 4; how++) {
				*pointer = bad[how];
				say("put %u, array %d bad %zu: %s", some[at], which, how,
				    outcome(ioctl(fb, FBIOPUTCMAP, &map)));
				memset(arrays[which], CANARY, 1024);
				say("get %u, array %d bad %zu: %s", some[at], which, how,
				    outcome(ioctl(fb, FBIOGETCMAP, &map)));
			}
		}
	}
	put_map(0, 256, 0);
	get_map(0, 256, 0);
}

/* Modes, panning, blanking. */

static struct fb_var_screeninfo first;

static void put(const char *name, struct fb_var_screeninfo var)
{
	memset(page, CANARY, PAGE);
	memcpy(page, &var, sizeof(var));
	say_bytes(name, ioctl(fb, FBIOPUT_VSCREENINFO, page), page, sizeof(var) + 8);
	ask("then", FBIOGET_VSCREENINFO, sizeof(var) + 8);
	ask("and", FBIOGET_FSCREENINFO, sizeof(struct fb_fix_screeninfo) + 8);
	ioctl(fb, FBIOPUT_VSCREENINFO, &first);
}

static void modes(void)
{
	static const uint32_t activates[] = {0, 1, 2, 3, 15, 16, 32, 64, 128, 256, 512, 0x80000000};
	static const uint32_t depths[] = {0, 1, 4, 8, 15, 16, 24, 32, 33, 64, 0xffffffff};
	struct fb_var_screeninfo var;
	size_t at;

	put("the same mode", first);
	for (at = 0; at < sizeof(activates) / sizeof(*activates); at++) {
		var = first;
		/* All of a mode is taken but what these say; not 16 and 128: they change other consoles. */
		var.activate = activates[at] & ~(FB_ACTIVATE_ALL | FB_ACTIVATE_KD_TEXT);
		put("activate", var);
	}
	for (at = 0; at < sizeof(depths) / sizeof(*depths); at++) {
		var = first;
		var.activate = FB_ACTIVATE_TEST;
		var.bits_per_pixel = depths[at];
		put("test of a depth", var);
		var.activate = FB_ACTIVATE_NOW;
		put("a depth", var);
	}
	var = first;
	var.xres -= 16;
	put("a smaller one", var);
	var = first;
	var.xres += 16;
	put("a larger one", var);
	var = first;
	var.yres_virtual *= 2;
	put("twice as high", var);
	var = first;
	var.xres = var.yres = 0xffffffff;
	put("an endless one", var);
	var = first;
	var.xres = var.yres = var.xres_virtual = var.yres_virtual = 0;
	put("none", var);
	var = first;
	var.grayscale = 1;
	put("grey", var);
	var.grayscale = 0x56595559;
	put("YUYV", var);
	var = first;
	var.rotate = 2;
	put("upside down", var);
	var = first;
	var.pixclock = 0;
	put("without a clock", var);
	var = first;
	var.nonstd = 1;
	put("another standard", var);
	memset(&var, 0, sizeof(var));
	put("zeroes", var);
	memset(&var, 0xff, sizeof(var));
	var.activate = 0;
	put("ones", var);
}

static void pan(const char *name, struct fb_var_screeninfo var)
{
	memset(page, CANARY, PAGE);
	memcpy(page, &var, sizeof(var));
	say_bytes(name, ioctl(fb, FBIOPAN_DISPLAY, page), page, sizeof(var) + 8);
	ask("then", FBIOGET_VSCREENINFO, sizeof(var) + 8);
}

static void pans(void)
{
	static const uint32_t offsets[] = {0, 1, 2, 8, 100, 0x7fffffff, 0x80000000, 0xffffffff};
	struct fb_var_screeninfo var;
	size_t at;

	for (at = 0; at < sizeof(offsets) / sizeof(*offsets); at++) {
		var = first;
		var.xoffset = offsets[at];
		pan("pan right", var);
		var.xoffset = 0;
		var.yoffset = offsets[at];
		pan("pan down", var);
		var.vmode |= FB_VMODE_YWRAP;
		pan("wrap", var);
	}
	memset(&var, CANARY, sizeof(var));
	var.xoffset = var.yoffset = var.vmode = 0;
	pan("pan with nonsense", var);
	var = first;
	var.xres = 7;
	pan("pan with another mode", var);
	pan("pan home", first);
}

static void numbers_as_arguments(void)
{
	static const long levels[] = {1, 2, 3, 4, 0, 5, 6, -1, 0x7fffffff};
	static const uint32_t consoles[] = {0, 1, 2, 63, 64, 65, 0xffffffff};
	size_t at;

	for (at = 0; at < sizeof(levels) / sizeof(*levels); at++)
		say("blank %ld: %s", levels[at], outcome(ioctl(fb, FBIOBLANK, levels[at])));
#if UINTPTR_MAX > 0xffffffff
	say("blank 0x100000000: %s", outcome(ioctl(fb, FBIOBLANK, 0x100000000L)));
#endif
	for (at = 0; at < sizeof(consoles) / sizeof(*consoles); at++) {
		struct fb_con2fbmap map = {consoles[at], 0xa5a5a5a5};
		int result = ioctl(fb, FBIOGET_CON2FBMAP, &map);

		say("console %u: %s %#x %#x", consoles[at], outcome(result), map.console, map.framebuffer);
		/* Where there is none, so that nothing moves. */
		map.framebuffer = 31;
		result = ioctl(fb, FBIOPUT_CON2FBMAP, &map);
		say("console %u to 31: %s %#x %#x", consoles[at], outcome(result), map.console, map.framebuffer);
		map.framebuffer = 32;
		say("console %u to 32: %s", consoles[at], outcome(ioctl(fb, FBIOPUT_CON2FBMAP, &map)));
	}
	for (at = 0; at < 3; at++) {
		uint32_t crtc = at;

		say("wait for crtc %zu: %s %u", at, outcome(ioctl(fb, FBIO_WAITFORVSYNC, &crtc)), crtc);
	}
}

static void access_modes(const char *node)
{
	static const int flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_NONBLOCK, O_RDWR | O_APPEND};
	size_t at;

	for (at = 0; at < sizeof(flags) / sizeof(*flags); at++) {
		int file = open(node, flags[at]);
		struct pollfd wanted = {file, POLLIN | POLLOUT | POLLPRI, 0};
		struct fb_var_screeninfo var = {0};
		char byte = 0;

		say("open %#x: %s", flags[at], file < 0 ? outcome(file) : "ok");
		say("get: %s", outcome(ioctl(file, FBIOGET_VSCREENINFO, &var)));
		say("put: %s", outcome(ioctl(file, FBIOPUT_VSCREENINFO, &var)));
		say("blank: %s", outcome(ioctl(file, FBIOBLANK, 0)));
		say("read: %s", outcome(read(file, &byte, 1)));
		say("write: %s", outcome(write(file, &byte, 1)));
		poll(&wanted, 1, 0);
		say("poll: %#x", wanted.revents);
		close(file);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: fb_ioctl_cases NODE\n");
		return 2;
	}
	page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(page + PAGE, PAGE);
	readonly = mmap(NULL, 16 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fb = open(argv[1], O_RDWR);
	if (fb < 0 || ioctl(fb, FBIOGET_VSCREENINFO, &first) < 0) {
		perror(argv[1]);
		return 1;
	}
	/* One state to begin with, whoever was here before. */
	first.activate = FB_ACTIVATE_NOW;
	ioctl(fb, FBIOPUT_VSCREENINFO, &first);
	ask("var", FBIOGET_VSCREENINFO, 256);
	ask("fix", FBIOGET_FSCREENINFO, 256);
	maps();
	modes();
	pans();
	numbers_as_arguments();
	access_modes(argv[1]);
	numbers();
	pointers();
	return 0;
}
