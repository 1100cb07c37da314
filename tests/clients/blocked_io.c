/*
 * A program that sleeps in read(2) or write(2), and says what came of it.
 *
 *   blocked_io [-w] [-r|-e] DEVICE SIZE
 *     -w  it writes; else it reads
 *     -r  SIGUSR1 has a handler that restarts system calls
 *     -e  SIGUSR1 has a handler that interrupts them
 *
 * With O_NONBLOCK it takes what there is, or fills what room there is, and once
 * more after a while, because the first frame goes at once; then it says
 * "waiting" and asks for SIZE bytes without.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t handled;

static void handler(int signal)
{
	(void)signal;
	handled++;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler };
	int option, fd, writes = 0, whiles, turns;
	size_t size;
	ssize_t count;
	char *memory;

	while ((option = getopt(argc, argv, "wre")) != -1) {
		if (option == 'w') {
			writes = 1;
			continue;
		}
		action.sa_flags = option == 'r' ? SA_RESTART : 0;
		sigaction(SIGUSR1, &action, NULL);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc - optind != 2)
		return 2;

	fd = open(argv[optind], O_RDWR | O_NONBLOCK);
	if (fd < 0) {
		perror(argv[optind]);
		return 2;
	}
	size = strtoul(argv[optind + 1], NULL, 0);
	memory = calloc(1, size);
	for (whiles = 0; whiles < 2; whiles++) {
		usleep(whiles * 300000);
		for (turns = 0; turns < 1000; turns++) {
			count = writes ? write(fd, memory, size) : read(fd, memory, size);
			if (count < 0)
				break;
		}
	}
	if (errno != EAGAIN || fcntl(fd, F_SETFL, O_RDWR) < 0) {
		perror("not to be filled");
		return 2;
	}
	puts("waiting");
	count = writes ? write(fd, memory, size) : read(fd, memory, size);
	printf("%s: %s, handler ran %d times\n", writes ? "write" : "read",
	       count < 0 ? strerrorname_np(errno) : count > 0 ? "some bytes" : "nothing", (int)handled);
	return 0;
}
