/*
 * Whose memory does a frame go to, when more than one process has the file?
 *
 *   address_spaces MODE DEVICE
 *
 * Every process has memory of its own at one and the same address. The frame
 * is made (STREAMON) only when all have done their part. Each then says what
 * is in its memory: nothing, the frame, or part of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where nothing else is. */
#if __SIZEOF_POINTER__ == 8
#define ADDRESS ((unsigned char *)0x200000000000)
#else
#define ADDRESS ((unsigned char *)0x20000000)
#endif
#define NOTHING 0x5a

static int fd;
static size_t length;
static unsigned char *picture;

static const char *outcome(int result)
{
	return result < 0 ? strerrorname_np(errno) : "ok";
}

static void must(const char *call, int result)
{
	if (result < 0) {
		printf("%s: %s\n", call, outcome(result));
		exit(2);
	}
}

/* Memory for two buffers, with nothing in it. */
static void map_memory(void)
{
	void *at = mmap(ADDRESS, 2 * length, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	must("mmap", at == MAP_FAILED ? -1 : 0);
	memset(at, NOTHING, 2 * length);
}

static int buffer_call(unsigned long request, int index, struct v4l2_buffer *b)
{
	*b = (struct v4l2_buffer){
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
		.m.userptr = (unsigned long)(ADDRESS + index * length),
		.length = length,
	};
	return ioctl(fd, request, b);
}

static void give(const char *who, const char *call, unsigned long request, int index)
{
	struct v4l2_buffer b;

	printf("%s: %s of %d: %s\n", who, call, index, outcome(buffer_call(request, index, &b)));
}

static void queue(const char *who, int index)
{
	give(who, "QBUF", VIDIOC_QBUF, index);
}

static void stream(unsigned long request)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

	must("STREAMON or STREAMOFF", ioctl(fd, request, &type));
}

static void dequeue(const char *who)
{
	struct v4l2_buffer b;
	int result = buffer_call(VIDIOC_DQBUF, 0, &b);

	if (result < 0)
		printf("%s: DQBUF: %s\n", who, outcome(result));
	else
		printf("%s: DQBUF: buffer %d%s\n", who, b.index,
		       b.flags & V4L2_BUF_FLAG_ERROR ? ", damaged" : "");
}

static void look(const char *who, int index)
{
	const unsigned char *at = ADDRESS + index * length;
	size_t untouched = 0;

	while (untouched < length && at[untouched] == NOTHING)
		untouched++;
	printf("%s: memory of %d: %s\n", who, index,
	       untouched == length ? "nothing" :
	       picture == NULL ? "NOT NOTHING" :
	       memcmp(at, picture, length) == 0 ? "the frame" : "SOMETHING ELSE");
}

static void open_device(const char *device)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_requestbuffers request = {
		.count = 2,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_USERPTR,
	};

	fd = open(device, O_RDWR);
	must("open", fd);
	must("G_FMT", ioctl(fd, VIDIOC_G_FMT, &format));
	must("REQBUFS", ioctl(fd, VIDIOC_REQBUFS, &request));
	length = format.fmt.pix.sizeimage;
	map_memory();
}

/* What a frame looks like, by an ordinary capture. */
static void take_picture(const char *device)
{
	struct v4l2_buffer b;

	open_device(device);
	must("QBUF", buffer_call(VIDIOC_QBUF, 0, &b));
	stream(VIDIOC_STREAMON);
	must("DQBUF", buffer_call(VIDIOC_DQBUF, 0, &b));
	picture = malloc(length);
	memcpy(picture, ADDRESS, length);
	close(fd);
}

/* Runs PART in a child that has been forked, and waits for its end. */
static void in_child(void (*part)(void))
{
	pid_t child = fork();

	if (child == 0) {
		part();
		exit(0);
	}
	must("fork", child);
	waitpid(child, NULL, 0);
}

static void child_dequeues(void)
{
	stream(VIDIOC_STREAMON);
	dequeue("child");
	look("child", 0);
}

static void child_queues_and_dequeues(void)
{
	queue("child", 0);
	child_dequeues();
}

static void child_queues(void)
{
	queue("child", 1);
}

static int tell[2], tell_back[2];

/* Still in the address space that the parent has left. */
static int left_behind(void *unused)
{
	char byte;

	(void)unused;
	if (read(tell[0], &byte, 1) != 1)
		_exit(1);
	stream(VIDIOC_STREAMON);
	dequeue("old");
	look("old", 0);
	fflush(stdout);
	_exit(write(tell_back[1], "x", 1) != 1);
}

/* Becomes this program again, with the file open. */
static void become(const char *mode)
{
	char words[4][16];

	snprintf(words[0], sizeof(words[0]), "%d", fd);
	snprintf(words[1], sizeof(words[1]), "%zu", length);
	snprintf(words[2], sizeof(words[2]), "%d", tell[1]);
	snprintf(words[3], sizeof(words[3]), "%d", tell_back[0]);
	fflush(stdout);
	execl("/proc/self/exe", "address_spaces", mode, words[0], words[1], words[2], words[3], NULL);
	must("exec", -1);
}

static int pair[2];

/* Gives the file to the process at the other end. */
static void send_file(void)
{
	char byte = 'x', room[CMSG_SPACE(sizeof(fd))] = { 0 };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	must("sendmsg", sendmsg(pair[0], &message, 0));
}

static void receive_file(void)
{
	char byte, room[CMSG_SPACE(sizeof(fd))];
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };

	must("recvmsg", recvmsg(pair[1], &message, 0));
	must("SCM_RIGHTS", CMSG_FIRSTHDR(&message) ? 0 : -1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
}

/* One says that it has done its part, the other waits for that. */
static void tell_other(int end)
{
	must("write", write(pair[end], "x", 1));
}

static void wait_for_other(int end)
{
	char byte;

	must("read", read(pair[end], &byte, 1) == 1 ? 0 : -1);
}

/* Runs PART in a process that has never opened the device, once it has been given the file. */
static pid_t stranger(void (*part)(void))
{
	pid_t child;

	must("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	child = fork();
	must("fork", child);
	if (child == 0) {
		close(pair[0]);
		map_memory();
		receive_file();
		part();
		exit(0);
	}
	close(pair[1]);
	return child;
}

static void stranger_dequeues(void)
{
	stream(VIDIOC_STREAMON);
	dequeue("stranger");
	look("stranger", 0);
}

static void stranger_queues(void)
{
	queue("stranger", 1);
	tell_other(1);
	wait_for_other(1);
	look("stranger", 1);
}

static void stranger_goes_on(void)
{
	wait_for_other(1);
	dequeue("stranger");
	queue("stranger", 1);
	dequeue("stranger");
	look("stranger", 1);
}

static void *other_thread(void *unused)
{
	/* Until the first thread has really ended. */
	usleep(100000);
	queue("second thread", 0);
	stream(VIDIOC_STREAMON);
	dequeue("second thread");
	look("second thread", 0);
	exit(0);
	return unused;
}

static void *thread_queues(void *unused)
{
	queue("second thread", 0);
	return unused;
}

int main(int argc, char **argv)
{
	const char *mode = argv[1];
	pthread_t thread;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 3) {
		char byte;

		fd = atoi(argv[2]);
		length = strtoul(argv[3], NULL, 10);
		map_memory();
		if (strcmp(mode, "after-exec") == 0) {
			stream(VIDIOC_STREAMON);
			dequeue("new");
		} else {
			if (write(atoi(argv[4]), "x", 1) != 1 || read(atoi(argv[5]), &byte, 1) != 1)
				return 2;
		}
		look("new", 0);
		return 0;
	}

	take_picture(argv[2]);
	if (strncmp(mode, "passed-", 7) == 0) {
		pid_t child = stranger(strcmp(mode, "passed-dequeue") == 0 ? stranger_dequeues :
				       strcmp(mode, "passed-queue") == 0 ? stranger_queues : stranger_goes_on);

		open_device(argv[2]);
		if (strcmp(mode, "passed-queue") != 0)
			queue("opener", 0);
		send_file();
		if (strcmp(mode, "passed-queue") == 0) {
			wait_for_other(0);
			stream(VIDIOC_STREAMON);
			dequeue("opener");
			tell_other(0);
		} else if (strcmp(mode, "passed-closed") == 0) {
			stream(VIDIOC_STREAMON);
			close(fd);
			tell_other(0);
		}
		waitpid(child, NULL, 0);
		look("opener", 0);
		look("opener", 1);
		return 0;
	}
	open_device(argv[2]);
	if (strcmp(mode, "fork-dequeue") == 0) {
		queue("parent", 0);
		in_child(child_dequeues);
		look("parent", 0);
	} else if (strcmp(mode, "fork-both") == 0) {
		queue("parent", 0);
		in_child(child_queues);
		/* The child has ended; its memory with it. */
		stream(VIDIOC_STREAMON);
		dequeue("parent");
		dequeue("parent");
		look("parent", 0);
		look("parent", 1);
	} else if (strcmp(mode, "fork-prepared") == 0) {
		give("parent", "PREPARE_BUF", VIDIOC_PREPARE_BUF, 0);
		in_child(child_queues_and_dequeues);
		look("parent", 0);
	} else if (strcmp(mode, "fork-same-pointer") == 0) {
		queue("parent", 0);
		stream(VIDIOC_STREAMON);
		dequeue("parent");
		stream(VIDIOC_STREAMOFF);
		memset(ADDRESS, NOTHING, 2 * length);
		in_child(child_queues_and_dequeues);
		look("parent", 0);
	} else if (strcmp(mode, "exec") == 0) {
		queue("before", 0);
		become("after-exec");
	} else if (strcmp(mode, "clone-exec") == 0) {
		static char stack[1 << 16] __attribute__((aligned(16)));

		must("pipe", pipe(tell));
		must("pipe", pipe(tell_back));
		queue("before", 0);
		fflush(stdout);
		must("clone", clone(left_behind, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));
		become("after-clone");
	} else if (strcmp(mode, "first-thread-ends") == 0) {
		pthread_create(&thread, NULL, other_thread, NULL);
		pthread_exit(NULL);
	} else if (strcmp(mode, "queueing-thread-ends") == 0) {
		pthread_create(&thread, NULL, thread_queues, NULL);
		pthread_join(thread, NULL);
		stream(VIDIOC_STREAMON);
		dequeue("first thread");
		look("first thread", 0);
	} else if (strcmp(mode, "undumpable") == 0) {
		prctl(PR_SET_DUMPABLE, 0);
		queue("undumpable", 0);
		stream(VIDIOC_STREAMON);
		dequeue("undumpable");
		look("undumpable", 0);
	} else {
		return 2;
	}
	return 0;
}
