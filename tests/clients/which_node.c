/*
 * Opens a file in every way that libc has and tells which device it got.
 *
 *   which_node PATH
 *
 * A line for each way: "open: 81:256 seen as 81:0", or the error. The first
 * number is the kernel's own, the second what libc's fstat tells; with "stat" it
 * is what stat tells of the path.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* What open and its like are with _FORTIFY_SOURCE. */
extern int __open_2(const char *path, int flags);
extern int __open64_2(const char *path, int flags);
extern int __openat_2(int dir, const char *path, int flags);
extern int __openat64_2(int dir, const char *path, int flags);

static void tell(const char *way, int fd)
{
	struct statx kernel;
	struct stat libc;

	if (fd < 0) {
		printf("%s: %s\n", way, strerrorname_np(errno));
		return;
	}
	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &kernel) < 0 || fstat(fd, &libc) < 0)
		printf("%s: stat: %s\n", way, strerrorname_np(errno));
	else
		printf("%s: %u:%u seen as %u:%u\n", way, kernel.stx_rdev_major, kernel.stx_rdev_minor,
		       major(libc.st_rdev), minor(libc.st_rdev));
	close(fd);
}

static void tell_stream(const char *way, FILE *stream)
{
	tell(way, stream ? dup(fileno(stream)) : -1);
	if (stream)
		fclose(stream);
}

int main(int argc, char **argv)
{
	const char *path = argv[1];
	struct open_how how = { .flags = O_RDWR };
	struct stat stat_of;
	char *volatile nothing = NULL;

	if (argc != 2) {
		fprintf(stderr, "usage: which_node PATH\n");
		return 2;
	}
	tell("open", open(path, O_RDWR));
	tell("open64", open64(path, O_RDWR));
	tell("openat", openat(AT_FDCWD, path, O_RDWR));
	tell("openat64", openat64(AT_FDCWD, path, O_RDWR));
	tell("__open_2", __open_2(path, O_RDWR));
	tell("__open64_2", __open64_2(path, O_RDWR));
	tell("__openat_2", __openat_2(AT_FDCWD, path, O_RDWR));
	tell("__openat64_2", __openat64_2(AT_FDCWD, path, O_RDWR));
	tell_stream("fopen", fopen(path, "r+"));
	tell_stream("fopen64", fopen64(path, "r+"));
#ifdef SYS_open
	tell("SYS_open", syscall(SYS_open, path, O_RDWR));
#endif
	tell("SYS_openat", syscall(SYS_openat, AT_FDCWD, path, O_RDWR));
	tell("SYS_openat2", syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how)));
	tell("O_PATH", open(path, O_PATH));
	tell("O_NOFOLLOW", open(path, O_RDWR | O_NOFOLLOW));
	tell("O_EXCL", open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
	tell("O_DIRECTORY", open(path, O_RDWR | O_DIRECTORY));
	if (stat(path, &stat_of) < 0)
		printf("stat: %s\n", strerrorname_np(errno));
	else
		printf("stat: seen as %u:%u\n", major(stat_of.st_rdev), minor(stat_of.st_rdev));
	tell("nothing", open("/dev/vidcompat-has-no-such-file", O_RDWR));
	tell("null", open(nothing, O_RDWR));
	printf("user %u group %u\n", geteuid(), getegid());
	return 0;
}
