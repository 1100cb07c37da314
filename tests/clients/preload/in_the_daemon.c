/* Preloaded into vidcompatd by the tests of its confinement: makes calls from within it, as a program would that has
 * taken it over. SIGUSR2 says when; the names of the calls are in $IN_THE_DAEMON. stderr tells what became of each:
 * "in the daemon: NAME: ERRNO" with 0 for success.
 *
 * With $HANG every VIDIOC_G_INPUT of the daemon never returns: HANG=lock waits for a lock that nobody gives back, HANG=driver
 * for a device that has nothing to say. With HANG=querycap every VIDIOC_QUERYCAP of the device $HANG_AT hangs until there is a
 * file /tmp/device-answers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <stdarg.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char *names;

static long call(const char *name)
{
	static char page[4096] __attribute__((aligned(4096)));

	if (!strcmp(name, "getpid")) return syscall(SYS_getpid);
	if (!strcmp(name, "mincore")) return syscall(SYS_mincore, page, sizeof page, (unsigned char[1]){0});
	if (!strcmp(name, "socket-inet")) return syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0);
	if (!strcmp(name, "socket-unix")) return syscall(SYS_socket, AF_UNIX, SOCK_DGRAM, 0);
	if (!strcmp(name, "kill-init")) return syscall(SYS_kill, 1, SIGCHLD);
	if (!strcmp(name, "kill-0")) return syscall(SYS_kill, 1, 0);
	if (!strcmp(name, "process")) {
		long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!child) _exit(0);
		return child;
	}
	if (!strcmp(name, "exec-memory"))
		return syscall(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!strcmp(name, "tiocsti")) return syscall(SYS_ioctl, 2, 0x5412, "x");
	if (!strcmp(name, "bpf-map")) return syscall(SYS_bpf, 0, page, 0);
	/* CAP_SYS_TIME etc. are gone as well, but these are about the filter. */
	if (!strcmp(name, "chown")) return fchownat(AT_FDCWD, "/tmp", 0, 0, 0);
	if (!strcmp(name, "write-file")) return open("/etc/vidcompat-test", O_WRONLY | O_CREAT, 0600);
	if (!strcmp(name, "execve")) {
		char *nothing[] = { "true", 0 };
		return syscall(SYS_execve, "/bin/true", nothing, nothing + 1);
	}
	abort();
}

static void on_signal(int signal)
{
	char list[512], *rest = list, line[128];
	(void)signal;
	snprintf(list, sizeof list, "%s", names);
	for (char *name; (name = strsep(&rest, " ")) && *name;) {
		errno = 0;
		long result = call(name);
		int length = snprintf(line, sizeof line, "in the daemon: %s: %d\n", name, result < 0 ? errno : 0);
		if (write(2, line, length) != length) abort();
	}
}

__attribute__((constructor)) static void begin(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	names = getenv("IN_THE_DAEMON");
	if (names) sigaction(SIGUSR2, &action, NULL);
}

static void hang(const char *where)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

	if (!strcmp(where, "lock")) {
		pthread_mutex_lock(&lock);
		for (;;) pthread_mutex_lock(&lock);
	}
	int device = open("/dev/tty9", O_RDONLY | O_NOCTTY);
	char text[256];
	while (device >= 0 && read(device, text, sizeof text) >= 0) {}
	abort();
}

/* The driver of $HANG_AT has its lock, and gives it back some day. */
static void hang_at(int fd)
{
	const char *path = getenv("HANG_AT");
	struct stat broken, asked;

	if (!path || stat(path, &broken) || fstat(fd, &asked) || broken.st_rdev != asked.st_rdev) return;
	while (access("/tmp/device-answers", F_OK)) usleep(10000);
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*real)(int, unsigned long, ...);
	const char *where = getenv("HANG");
	va_list arguments;

	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if (where && !strcmp(where, "querycap")) {
		if ((unsigned int)request == (unsigned int)VIDIOC_QUERYCAP) hang_at(fd);
	} else if (where && (unsigned int)request == (unsigned int)VIDIOC_G_INPUT) {
		hang(where);
	}
	if (!real) real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	return real(fd, request, argument);
}
