/* Preloaded into vidcompatd: ends it by SIGKILL at a certain call, so that every step between a device's answer and the
 * client's is a moment of death some time. /tmp/die-at says which, "NAME NUMBER": the NUMBER-th call of NAME from the
 * beginning of the process. It is taken away when it was read, so that the next daemon lives. NAME is
 *   pwrite    before it: what the device has done is not written down
 *   writev    before it: what is written down is not answered
 *   copy      after process_vm_writev: the client has the bytes, and no answer
 *   qbuf, dqbuf, reqbufs, streamoff    after such an ioctl that has succeeded
 * /tmp/die-at-each stays: every daemon that makes the ioctl whose _IOC_NR it holds dies of it, by SIGSEGV. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char name[32];
static atomic_long left;
static long deadly = -1;

__attribute__((constructor)) static void begin(void)
{
	FILE *file = fopen("/tmp/die-at-each", "r");
	long number;

	if (file) {
		if (fscanf(file, "%ld", &number) == 1)
			deadly = number;
		fclose(file);
	}
	file = fopen("/tmp/die-at", "r");
	if (!file)
		return;
	if (fscanf(file, "%31s %ld", name, &number) == 2)
		left = number;
	fclose(file);
	unlink("/tmp/die-at");
}

static void may_die(const char *what)
{
	if (left > 0 && !strcmp(what, name) && atomic_fetch_sub(&left, 1) == 1)
		kill(getpid(), SIGKILL);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
	ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");

	may_die("pwrite");
	return real(fd, bytes, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");

	may_die("writev");
	return real(fd, parts, count);
}

ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long locals, const struct iovec *remote,
			  unsigned long remotes, unsigned long flags)
{
	ssize_t (*real)(pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long, unsigned long) =
		dlsym(RTLD_NEXT, "process_vm_writev");
	ssize_t result = real(pid, local, locals, remote, remotes, flags);

	may_die("copy");
	return result;
}

int ioctl(int fd, unsigned long request, ...)
{
	int (*real)(int, unsigned long, void *) = dlsym(RTLD_NEXT, "ioctl");
	void *argument;
	va_list list;
	int result;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (deadly >= 0 && _IOC_TYPE(request) == 'V' && _IOC_NR(request) == (unsigned long)deadly) {
		signal(SIGSEGV, SIG_DFL);
		raise(SIGSEGV);
	}
	result = real(fd, request, argument);
	if (result == 0 && left > 0) {
		switch ((unsigned)request) {
		case VIDIOC_QBUF: may_die("qbuf"); break;
		case VIDIOC_DQBUF: may_die("dqbuf"); break;
		case VIDIOC_REQBUFS: may_die("reqbufs"); break;
		case VIDIOC_STREAMOFF: may_die("streamoff"); break;
		}
	}
	return result;
}
