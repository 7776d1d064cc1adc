/* SPDX-License-Identifier: MIT */
/*
 * System calls that Python's os module lacks. cffi releases the GIL around each of them. They return a
 * value >= 0, or -errno.
 */
#include "native.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>

int vp_ioctl(int fd, unsigned long request, uintptr_t argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

int vp_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
	int result;

	do {
		result = fallocate(fd, mode, offset, length);
	} while (result < 0 && errno == EINTR);
	return result < 0 ? -errno : 0;
}

/* A shared lock on one byte, held by the open file (fcntl_locking(2), OFD). */
int vp_ofd_lock(int fd, int64_t offset)
{
	struct flock lock = {
		.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1,
	};

	return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* 1: another open file holds a lock on this byte. */
int vp_ofd_is_locked(int fd, int64_t offset)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1,
	};

	if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	return lock.l_type != F_UNLCK;
}

/* Maps `length` bytes of a file, to be read only, in place of what is mapped at `address`: at once. */
int vp_map_over(uintptr_t address, size_t length, int fd, int64_t offset)
{
	void *mapped = mmap((void *)address, length, PROT_READ, MAP_SHARED | MAP_FIXED, fd, offset);

	return mapped == MAP_FAILED ? -errno : 0;
}

/* 1: the file is on a file system that keeps all of it in memory. */
int vp_is_in_memory(int fd)
{
	struct statfs found;

	if (fstatfs(fd, &found) < 0)
		return -errno;
	return found.f_type == TMPFS_MAGIC || found.f_type == RAMFS_MAGIC ||
	       found.f_type == HUGETLBFS_MAGIC;
}
