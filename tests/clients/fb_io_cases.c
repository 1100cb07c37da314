/*
 * What a program may do to a framebuffer by read, write, lseek and mmap, usual
 * or not: each case says what came of it, in words that are the same at each
 * run. The suite runs it on the real node and on ours.
 *
 *   fb_io_cases NODE [seek] [map] [short]
 *
 * seek: also what needs lseek; map: also mmap; short: no write of more than
 * 128 KiB beyond the end. It leaves colours behind, and
 * nobody else must draw meanwhile: a console's cursor would show. It knows
 * nothing of vidcompat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define WHOLE(length) (((length) + PAGE - 1) & ~(PAGE - 1))

static const char *node;
static struct fb_fix_screeninfo fix;
static struct fb_var_screeninfo var;
/* Bytes that can be read: not always smem_len. */
static size_t size;
static unsigned char *buffer;
static size_t room;
static int is_short;
/* Not NULL to the compiler. */
static void *volatile nowhere;

static void say(const char *format, ...)
{
	va_list rest;

	va_start(rest, format);
	vprintf(format, rest);
	va_end(rest);
	putchar('\n');
	fflush(stdout);
}

/* Relative to the framebuffer's size, so that a number means something. */
static const char *outcome(long result)
{
	static char text[60];

	if (result == -1) {
		const char *name = strerrorname_np(errno);
		return name ? name : "unknown errno";
	}
	snprintf(text, sizeof(text), "%ld", result);
	return text;
}

static uint32_t hash(const unsigned char *bytes, size_t length)
{
	uint32_t hash = 2166136261U;
	size_t at;

	for (at = 0; at < length; at++)
		hash = (hash ^ bytes[at]) * 16777619;
	return hash;
}

/* What a call has read into the buffer, or left there. */
static void say_got(const char *name, long result, size_t length)
{
	const char *came = outcome(result);

	say("%s: %s, %08x", name, came, hash(buffer, length));
}

static void fill(unsigned char *bytes, size_t length, unsigned seed)
{
	size_t at;

	for (at = 0; at < length; at++)
		bytes[at] = (at * 7 + (at >> 8) * 13 + seed) & 0xff;
}

static int open_or_die(int flags)
{
	int fb = open(node, flags);

	if (fb < 0) {
		perror(node);
		exit(1);
	}
	return fb;
}

/* The whole of it, by its own file and offset 0: what others have written. */
static void say_contents(const char *name)
{
	int fb = open_or_die(O_RDONLY);
	size_t got = 0;
	ssize_t count;

	while (got < room && (count = read(fb, buffer + got, room - got)) > 0)
		got += count;
	say("%s: %zu bytes, %08x", name, got, hash(buffer, got));
	close(fb);
}

static void reads(void)
{
	static const size_t lengths[] = {0, 1, 100, 4095, 4096, 4097, 131071, 131072, 131073, 300000};
	int fb = open_or_die(O_RDWR);
	struct iovec vector[3];
	size_t at;

	for (at = 0; at < sizeof(lengths) / sizeof(*lengths); at++) {
		ssize_t count = read(fb, buffer + 3, lengths[at]);

		say("read %zu: %s", lengths[at], outcome(count));
		say("that is %08x", hash(buffer + 3, count > 0 ? count : 0));
	}
	for (at = 0; at < 3; at++) {
		vector[at].iov_base = buffer + at * 1000;
		vector[at].iov_len = 777;
	}
	say_got("readv", readv(fb, vector, 3), 3000);
	say_got("preadv", preadv(fb, vector, 3, 12345), 3000);
	say_got("preadv2 there", preadv2(fb, vector, 3, -1, 0), 3000);
	say_got("pread", pread(fb, buffer, 5000, 70001), 5000);
	say_got("pread of much", pread(fb, buffer, 300000, 70001), 300000);
	say_got("read after them", read(fb, buffer, 100), 100);
	say("pread at the end: %s", outcome(pread(fb, buffer, 100, size)));
	say("pread before the end: %s", outcome(pread(fb, buffer, 100, size - 10)));
	say("pread behind it: %s", outcome(pread(fb, buffer, 100, size + 10)));
	say("pread of much before the end: %s", outcome(pread(fb, buffer, 300000, size - 200000)));
	say("pread far behind: %s", outcome(pread(fb, buffer, 100, 0x7ffffff0)));
#if UINTPTR_MAX > 0xffffffff || defined(_FILE_OFFSET_BITS)
	say("pread at 2^32: %s", outcome(pread(fb, buffer, 100, 0x100000000LL)));
	say("pread at 2^62: %s", outcome(pread(fb, buffer, 100, 1LL << 62)));
#endif
	say("pread before the start: %s", outcome(pread(fb, buffer, 100, -1)));
	say("read to nowhere: %s", outcome(read(fb, nowhere, 100)));
	say("read to nowhere of nothing: %s", outcome(read(fb, nowhere, 0)));
	say_got("read after that", read(fb, buffer, 100), 100);
	close(fb);
}

static void to_the_end(size_t piece)
{
	int fb = open_or_die(O_RDWR);
	size_t done = 0;
	ssize_t count = 0;

	fill(buffer, room, piece);
	while (done < room && (count = write(fb, buffer + done, piece)) > 0)
		done += count;
	say("writes of %zu: %zu, then %s", piece, done, outcome(count));
	say("and again: %s", outcome(write(fb, buffer, 1)));
	say("of nothing: %s", outcome(write(fb, buffer, 0)));
	say("read there: %s", outcome(read(fb, buffer, 1)));
	close(fb);
	say_contents("contents");
}

static void writes(void)
{
	int fb = open_or_die(O_RDWR);
	struct iovec vector[3];
	size_t at;

	fill(buffer, room, 1);
	say("write: %s", outcome(write(fb, buffer, 5000)));
	say("write: %s", outcome(write(fb, buffer + 7, 140000)));
	for (at = 0; at < 3; at++) {
		vector[at].iov_base = buffer + at * 1000;
		vector[at].iov_len = 777;
	}
	say("writev: %s", outcome(writev(fb, vector, 3)));
	say("pwritev: %s", outcome(pwritev(fb, vector, 3, 400001)));
	say("pwritev2 there: %s", outcome(pwritev2(fb, vector, 3, -1, 0)));
	say("pwrite: %s", outcome(pwrite(fb, buffer, 3000, 200000)));
	say("pwrite of much: %s", outcome(pwrite(fb, buffer, 270000, 210003)));
	say_got("read after them", read(fb, buffer, 64), 64);
	fill(buffer, room, 2);
	say("pwrite before the end: %s", outcome(pwrite(fb, buffer, 100, size - 10)));
	say("pwrite at the end: %s", outcome(pwrite(fb, buffer, 100, size)));
	say("pwrite of nothing at the end: %s", outcome(pwrite(fb, buffer, 0, size)));
	say("pwrite behind it: %s", outcome(pwrite(fb, buffer, 100, size + 1)));
	say("pwrite far behind: %s", outcome(pwrite(fb, buffer, 100, 0x7ffffff0)));
#if UINTPTR_MAX > 0xffffffff || defined(_FILE_OFFSET_BITS)
	say("pwrite at 2^32: %s", outcome(pwrite(fb, buffer, 100, 0x100000000LL)));
	say("pwrite at 2^62: %s", outcome(pwrite(fb, buffer, 100, 1LL << 62)));
#endif
	say("pwrite before the start: %s", outcome(pwrite(fb, buffer, 100, -1)));
	say_contents("contents");
	/* Some drivers leave zeroes then, and some leave what was there. */
	say("write from nowhere: %s", outcome(write(fb, nowhere, 100)));
	close(fb);
	to_the_end(100000);
	to_the_end(4096);
	if (!is_short)
		to_the_end(1000000);
	/* Two files have two positions, two fds of one file one. */
	{
		ssize_t written = 0;
		int one = open_or_die(O_RDWR), other = open_or_die(O_RDWR), twin;

		twin = dup(one);
		fill(buffer, room, 3);
		written += write(one, buffer, 1000);
		written += write(other, buffer + 1, 100);
		written += write(twin, buffer + 2, 100);
		if (fork() == 0) {
			_exit(write(one, buffer + 3, 100) != 100);
		}
		wait(NULL);
		written += write(one, buffer + 4, 100);
		close(one);
		close(other);
		close(twin);
		say("%zd by this process", written);
		say_contents("two files");
	}
	{
		int append = open_or_die(O_WRONLY | O_APPEND);

		fill(buffer, room, 4);
		say("append: %s", outcome(write(append, buffer, 1000)));
		say("append: %s", outcome(write(append, buffer, 1000)));
		close(append);
		say_contents("appended");
	}
}

static void seeks(void)
{
	static const long offsets[] = {0, 1, 4096, 100000, -1, -4096, 0x7fffffff};
	static const int whences[] = {SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE, 5, -1};
	int fb = open_or_die(O_RDWR);
	size_t from, at, how;
	FILE *file;

	for (from = 0; from < 3; from++)
		for (at = 0; at < sizeof(offsets) / sizeof(*offsets); at++)
			for (how = 0; how < sizeof(whences) / sizeof(*whences); how++) {
				off_t to;

				lseek(fb, from * 5000, SEEK_SET);
				to = lseek(fb, offsets[at], whences[how]);
				say("from %zu by %ld, %d: %s", from * 5000, offsets[at], whences[how], outcome(to));
				say("at %s", outcome(lseek(fb, 0, SEEK_CUR)));
			}
	lseek(fb, 0x7fffffff, SEEK_SET);
	say("beyond what an int has: %s", outcome(lseek(fb, 1, SEEK_CUR)));
	say("64 bits: %lld", (long long)lseek64(fb, 0x123456789aLL, SEEK_SET));
	say("64 bits: %lld", (long long)lseek64(fb, 0, SEEK_CUR));
	say("by syscall: %s", outcome(syscall(SYS_lseek, fb, 4242, SEEK_SET)));
#ifdef SYS__llseek
	{
		long long to = -7;

		say("by syscall: %s", outcome(syscall(SYS__llseek, fb, 1, 5, &to, SEEK_SET)));
		say("to %#llx", to);
		say("to nowhere: %s", outcome(syscall(SYS__llseek, fb, 1, 5, NULL, SEEK_SET)));
	}
#endif
	lseek(fb, 5000, SEEK_SET);
	say_got("read there", read(fb, buffer, 100), 100);
	say("at %s", outcome(lseek(fb, 0, SEEK_CUR)));
	lseek(fb, size - 50, SEEK_SET);
	say("write there: %s", outcome(write(fb, buffer, 100)));
	say("and there: %s", outcome(write(fb, buffer, 100)));
	lseek(fb, size + 1, SEEK_SET);
	say("and behind: %s", outcome(write(fb, buffer, 100)));
	say("read behind: %s", outcome(read(fb, buffer, 100)));
	say("at %s", outcome(lseek(fb, 0, SEEK_CUR)));
	close(fb);
	file = fopen("/dev/null", "r");
	say("another file: %s", outcome(lseek(fileno(file), 10, SEEK_SET)));
	fclose(file);
	say("no file: %s", outcome(lseek(999, 0, SEEK_SET)));
}

static sigjmp_buf fault;

static void on_fault(int signal)
{
	siglongjmp(fault, signal);
}

/* What touching the byte gives: its value, or the signal. */
static void touch(const char *name, volatile unsigned char *byte, int write)
{
	int signal = sigsetjmp(fault, 1);

	if (signal) {
		say("%s: signal %d", name, signal);
		return;
	}
	if (write)
		*byte = 0x5a;
	say("%s: %02x", name, *byte);
}

static void map_case(int fb, const char *name, size_t length, int prot, int flags, off_t offset)
{
	unsigned char *mapped = mmap(NULL, length, prot, flags, fb, offset);

	if (mapped == MAP_FAILED) {
		say("map %s: %s", name, outcome(-1));
		return;
	}
	say("map %s: ok", name);
	if (prot & PROT_READ && length <= WHOLE(fix.smem_len) && offset == 0)
		say("it has %08x", hash(mapped, length < size ? length : size));
	if (prot & PROT_READ && offset + length > WHOLE(fix.smem_len))
		touch("its last byte", mapped + length - 1, 0);
	munmap(mapped, length);
}

static void maps(void)
{
	static const struct {
		const char *name;
		int flags;
	} files[] = {{"O_RDWR", O_RDWR}, {"O_RDONLY", O_RDONLY}, {"O_WRONLY", O_WRONLY}};
	static const struct {
		const char *name;
		int flags;
	} kinds[] = {{"shared", MAP_SHARED}, {"private", MAP_PRIVATE}, {"validated", MAP_SHARED_VALIDATE}, {"neither", 0}};
	size_t smem = WHOLE(fix.smem_len);
	size_t file, kind;
	int fb, other, prot;
	unsigned char *one, *two, *own;

	signal(SIGBUS, on_fault);
	signal(SIGSEGV, on_fault);
	for (file = 0; file < 3; file++) {
		fb = open_or_die(files[file].flags);
		for (kind = 0; kind < 4; kind++)
			for (prot = 0; prot < 8; prot++) {
				char name[80];

				snprintf(name, sizeof(name), "%s %s prot %d", files[file].name, kinds[kind].name, prot);
				map_case(fb, name, smem, prot, kinds[kind].flags, 0);
			}
		close(fb);
	}
	fb = open_or_die(O_RDWR);
	map_case(fb, "nothing", 0, PROT_READ, MAP_SHARED, 0);
	map_case(fb, "a byte", 1, PROT_READ, MAP_SHARED, 0);
	map_case(fb, "smem_len", fix.smem_len, PROT_READ, MAP_SHARED, 0);
	map_case(fb, "a page more", smem + PAGE, PROT_READ, MAP_SHARED, 0);
	map_case(fb, "twice as much", 2 * smem, PROT_READ, MAP_SHARED, 0);
	map_case(fb, "the second page", PAGE, PROT_READ, MAP_SHARED, PAGE);
	map_case(fb, "all from the second page", smem, PROT_READ, MAP_SHARED, PAGE);
	map_case(fb, "the last page", PAGE, PROT_READ, MAP_SHARED, smem - PAGE);
	map_case(fb, "registers", PAGE, PROT_READ, MAP_SHARED, smem);
	map_case(fb, "behind them", PAGE, PROT_READ, MAP_SHARED, smem + WHOLE(fix.mmio_len));
	map_case(fb, "far behind", PAGE, PROT_READ, MAP_SHARED, 0x7ffff000);
	map_case(fb, "no page", PAGE, PROT_READ, MAP_SHARED, 100);
	map_case(fb, "populated", smem, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, 0);
	map_case(fb, "locked", PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED, 0);
	map_case(fb, "synchronous", PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, 0);
	map_case(fb, "all of memory", SIZE_MAX & ~(PAGE - 1), PROT_READ, MAP_SHARED, 0);

	/* Several see each other's pixels, by mapping, reading and writing. */
	other = open_or_die(O_RDWR);
	one = mmap(NULL, smem, PROT_READ | PROT_WRITE, MAP_SHARED, fb, 0);
	two = mmap(NULL, smem, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	own = mmap(NULL, smem, PROT_READ | PROT_WRITE, MAP_PRIVATE, fb, 0);
	say("three mappings: %d %d %d", one != MAP_FAILED, two != MAP_FAILED, own != MAP_FAILED);
	if (one == MAP_FAILED || two == MAP_FAILED)
		return;
	fill(one, size, 9);
	say("the other sees %08x", hash(two, size));
	say_contents("who reads sees");
	say("pwrite: %s", outcome(pwrite(other, "written", 7, 5000)));
	say("the first sees %.7s", one + 5000);
	close(fb);
	memcpy(one + 6000, "closed", 6);
	say("after close: %.6s", two + 6000);
	if (own != MAP_FAILED) {
		memcpy(own + 7000, "private", 7);
		say("private: %.7s, shared: %02x", own + 7000, one[7000]);
	}
	if (fork() == 0) {
		memcpy(one + 8000, "child", 5);
		_exit(0);
	}
	wait(NULL);
	say("the child: %.5s", two + 8000);
	munmap(one, smem);
	memcpy(two + 9000, "last", 4);
	close(other);
	munmap(two, smem);
	say_contents("in the end");
}

int main(int argc, char **argv)
{
	int fb, seek = 0, map = 0, at;

	if (argc < 2) {
		fprintf(stderr, "usage: fb_io_cases NODE [seek] [map] [short]\n");
		return 2;
	}
	for (at = 2; at < argc; at++) {
		seek |= strcmp(argv[at], "seek") == 0;
		map |= strcmp(argv[at], "map") == 0;
		is_short |= strcmp(argv[at], "short") == 0;
	}
	node = argv[1];
	fb = open_or_die(O_RDWR);
	if (ioctl(fb, FBIOGET_FSCREENINFO, &fix) < 0 || ioctl(fb, FBIOGET_VSCREENINFO, &var) < 0) {
		perror(node);
		return 1;
	}
	room = fix.smem_len + 2 * 1000000;
	buffer = malloc(room);
	for (;;) {
		ssize_t count = read(fb, buffer, 100000);

		if (count <= 0)
			break;
		size += count;
	}
	close(fb);
	say("size: %zu, smem_len %u", size, fix.smem_len);
	/* One state to begin with. */
	memset(buffer, 0, room);
	to_the_end(65536);
	writes();
	reads();
	if (seek)
		seeks();
	if (map)
		maps();
	return 0;
}
