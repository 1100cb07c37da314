// A program that maps a framebuffer once and keeps the mapping, as SDL 1.2 does, and draws in it as it is told.
//   fb_hand NODE shared|private|read
// Says `mapped BYTES` or the name of what went wrong, then does what its stdin says, one line each:
//   copy OFFSET FILE   copies a file's bytes there; says `done`
//   has OFFSET FILE    says `yes` if the bytes there are the file's, else `no`
//   close              closes the node; the mapping stays; says `done`
#define _GNU_SOURCE
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned char *memory;
static size_t size;

static unsigned char *contents(const char *path, size_t *length)
{
	struct stat stat;
	int file = open(path, O_RDONLY);
	if (file < 0 || fstat(file, &stat))
		return NULL;
	unsigned char *bytes = malloc(stat.st_size);
	*length = stat.st_size;
	if (read(file, bytes, *length) != (ssize_t)*length)
		return NULL;
	close(file);
	return bytes;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	int reads = !strcmp(argv[2], "read");
	int node = open(argv[1], reads ? O_RDONLY : O_RDWR);
	struct fb_fix_screeninfo fix;
	if (node < 0 || ioctl(node, FBIOGET_FSCREENINFO, &fix)) {
		printf("%s\n", strerrorname_np(errno));
		return 1;
	}
	size = fix.smem_len;
	memory = mmap(NULL, size, reads ? PROT_READ : PROT_READ | PROT_WRITE,
		      strcmp(argv[2], "private") ? MAP_SHARED : MAP_PRIVATE, node, 0);
	if (memory == MAP_FAILED) {
		printf("%s\n", strerrorname_np(errno));
		return 1;
	}
	printf("mapped %zu\n", size);
	char line[512], path[400];
	size_t offset, length;
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "close\n")) {
			close(node);
			puts("done");
			continue;
		}
		int copies = sscanf(line, "copy %zu %399s", &offset, path) == 2;
		if (!copies && sscanf(line, "has %zu %399s", &offset, path) != 2)
			return 2;
		unsigned char *bytes = contents(path, &length);
		if (!bytes || offset > size || length > size - offset) {
			puts("no such bytes");
			continue;
		}
		if (copies)
			memcpy(memory + offset, bytes, length);
		puts(copies ? "done" : memcmp(memory + offset, bytes, length) ? "no" : "yes");
		free(bytes);
	}
	return 0;
}
