/* SPDX-License-Identifier: MIT */
/*
 * A process gives up what it does not need any more: capabilities, files (Landlock) and system calls
 * (seccomp).  The former two are each thread's own affair, so threads that run already are taken out
 * of what they do by a signal, whose handler does it there.  A system call that the filter traps fails
 * with EPERM; standard error is told its name, once for each.
 */
#include "native.h"

#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "syscalls.h"

#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule 445
#define __NR_landlock_restrict_self 446
#endif

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1
#endif

#define LANDLOCK_VERSION 1
#define LANDLOCK_PATH_BENEATH 1

/* As the newest kernel has them; an older one is given fewer bytes. */
struct ruleset {
	uint64_t files, network, scoped;
};

struct path_beneath {
	uint64_t access;
	int32_t fd;
} __attribute__((packed));

static const struct name {
	const char *name;
	int number;
} names[] = {
#define NAME(call) { #call, __NR_##call },
	SYSTEM_CALLS(NAME)
#undef NAME
};

#define NAMES (sizeof(names) / sizeof(names[0]))
#define NUMBERS 1024

static uint8_t told[NUMBERS];

const char *vp_syscall_name(int number)
{
	for (size_t i = 0; i < NAMES; i++)
		if (names[i].number == number)
			return names[i].name;
	return NULL;
}

/* -1 for a name that is none. */
int vp_syscall_number(const char *name)
{
	for (size_t i = 0; i < NAMES; i++)
		if (strcmp(names[i].name, name) == 0)
			return names[i].number;
	return -1;
}

/* Landlock */

/* The version of Landlock that the kernel has, or the error why it has none. */
int vp_landlock_version(void)
{
	int version = syscall(__NR_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);

	return version < 0 ? -errno : version;
}

/* Returns a ruleset that forbids these accesses; `size` bytes of struct ruleset are given. */
int vp_landlock_new(uint64_t files, uint64_t network, uint64_t scoped, size_t size)
{
	struct ruleset ruleset = { files, network, scoped };
	int fd = syscall(__NR_landlock_create_ruleset, &ruleset, size, 0);

	return fd < 0 ? -errno : fd;
}

/* Allows accesses to an open file, or to what is beneath an open folder. */
int vp_landlock_allow(int ruleset, int fd, uint64_t access)
{
	struct path_beneath rule = { access, fd };

	return syscall(__NR_landlock_add_rule, ruleset, LANDLOCK_PATH_BENEATH, &rule, 0) < 0 ? -errno : 0;
}

/* Threads */

static int domain;
static int (*step)(void);
static int failure;
static int done;

/* So that no program started later has a capability. */
static int drop_bounding_set(void)
{
	/* Fails for a user who has none of them to drop, and past the last. */
	for (int capability = 0; capability < 64; capability++)
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
			break;
	return 0;
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

	drop_bounding_set();
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return syscall(SYS_capset, &header, none) < 0 ? -errno : 0;
}

static int give_up(void)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	if (domain >= 0 && syscall(__NR_landlock_restrict_self, domain, 0) < 0)
		return -errno;
	return drop_capabilities();
}

/* What a helper gives up between fork and exec: `landlock` is a ruleset, or negative. */
int vp_confine(int landlock)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return landlock >= 0 && syscall(__NR_landlock_restrict_self, landlock, 0) < 0 ? -errno : 0;
}

static void at_signal(int number)
{
	int error = errno, result = step();

	(void)number;
	if (result < 0)
		__atomic_store_n(&failure, result, __ATOMIC_RELEASE);
	__atomic_fetch_add(&done, 1, __ATOMIC_ACQ_REL);
	errno = error;
}

/* Waits until `count` threads have given up; a thread that ends meanwhile needs not. */
static int await(pid_t thread, int count)
{
	const struct timespec pause = { .tv_nsec = 100000 };

	for (int i = 0; i < 50000; i++) {
		if (__atomic_load_n(&done, __ATOMIC_ACQUIRE) >= count)
			return 0;
		if (syscall(SYS_tgkill, getpid(), thread, 0) < 0)
			return -ESRCH;
		nanosleep(&pause, NULL);
	}
	return -ETIMEDOUT;
}

/* Has all threads take a step, this one last. */
static int have_all(int (*taken)(void), int signal_number)
{
	struct sigaction action = { .sa_handler = at_signal, .sa_flags = SA_RESTART }, before;
	pid_t self = syscall(SYS_gettid);
	struct dirent *entry;
	int result = 0, count = 0;
	DIR *threads = opendir("/proc/self/task");

	if (!threads)
		return -errno;
	step = taken;
	sigaction(signal_number, &action, &before);
	done = failure = 0;
	while (result == 0 && (entry = readdir(threads)) != NULL) {
		pid_t thread = atoi(entry->d_name);

		if (thread == 0 || thread == self || syscall(SYS_tgkill, getpid(), thread, signal_number) < 0)
			continue;
		result = await(thread, count + 1);
		if (result == 0)
			count++;
		else if (result == -ESRCH)
			result = 0;
		if (result == 0)
			result = __atomic_load_n(&failure, __ATOMIC_ACQUIRE);
	}
	closedir(threads);
	sigaction(signal_number, &before, NULL);
	return result == 0 ? step() : result;
}

/* System calls */

static size_t append(char *line, size_t used, const char *text)
{
	while (*text)
		line[used++] = *text++;
	return used;
}

static void tell(int number)
{
	const char *name = vp_syscall_name(number);
	char line[160], digits[12];
	size_t used = 0;
	int left = number, at = sizeof(digits) - 1;

	digits[at] = 0;
	do {
		digits[--at] = '0' + left % 10;
		left /= 10;
	} while (left > 0);
	used = append(line, used, "virtiopy: the sandbox refused the system call ");
	used = append(line, used, name ? name : "of number");
	used = append(line, used, name ? " (" : " ");
	used = append(line, used, digits + at);
	used = append(line, used, name ? ").\n" : ".\n");
	if (write(STDERR_FILENO, line, used) < 0) {
		/* There is no reader. */
	}
}

static void at_refused(int signal_number, siginfo_t *info, void *context)
{
	ucontext_t *machine = context;
	int number = info->si_syscall, error = errno;

	(void)signal_number;
	if (info->si_code != SYS_SECCOMP)
		return;
	if (number < 0 || number >= NUMBERS || !__atomic_exchange_n(&told[number], 1, __ATOMIC_RELAXED))
		tell(number);
	machine->uc_mcontext.gregs[REG_RAX] = -EPERM;
	errno = error;
}

static int filter_calls(const struct vp_bpf *program, size_t length)
{
	struct sigaction action = {
		.sa_sigaction = at_refused, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER,
	};
	struct sock_fprog filter = { .len = length, .filter = (struct sock_filter *)program };

	sigaction(SIGSYS, &action, NULL);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0 ?
	       0 : errno ? -errno : -ESRCH;
}

/* Drops every capability from the bounding set of all threads, while they may. */
int vp_drop_bounding_set(int signal_number)
{
	return have_all(drop_bounding_set, signal_number);
}

/*
 * Has all threads give up their capabilities and what the ruleset `landlock` forbids, unless it is
 * negative, and the process the system calls that a filter of `length` forbids, unless that is 0.
 * Threads are stopped by `signal_number`, which none of them may block.
 */
int vp_sandbox_enter(int landlock, const struct vp_bpf *program, size_t length, int signal_number)
{
	int result;

	domain = landlock;
	result = have_all(give_up, signal_number);
	if (result == 0 && length > 0)
		result = filter_calls(program, length);
	return result;
}

/* Whether the kernel has filters of system calls, which can be put over all threads. */
int vp_has_seccomp(void)
{
	uint32_t action = SECCOMP_RET_TRAP;

	return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}
