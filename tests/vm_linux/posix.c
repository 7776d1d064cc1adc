// SPDX-License-Identifier: MIT
/*
 * What POSIX says of files, asked of a folder that Linux in the VM has mounted: tests/vm_linux.
 *
 *     posix FOLDER FILES [CHECK...]
 *
 * Prints "ok CHECK" or "not ok CHECK: LINE errno" for each, and leaves some of the files for the
 * host to look at. "many" makes, lists and removes FILES files. The status is how many were not ok.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PAGE 4096
#define RECORDS 50
#define RECORD 64
#define NAME_BYTES 255

/* Makes a check end, with the line that was not so. */
#define EXPECT(condition)					\
	do {							\
		if (!(condition))				\
			return __LINE__;			\
	} while (0)

/* As EXPECT, of a call that has to fail with this error number. */
#define REFUSED(call, number) EXPECT((call) == -1 && errno == (number))

static int file_count;

static int make(const char *name, const char *content)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);

	if (fd >= 0 && write(fd, content, strlen(content)) != (ssize_t)strlen(content)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int make_closed(const char *name, const char *content)
{
	int fd = make(name, content);

	return fd < 0 ? -1 : close(fd);
}

static bool holds(int fd, const char *content)
{
	char data[PAGE];
	size_t size = strlen(content);

	return pread(fd, data, sizeof(data), 0) == (ssize_t)size && !memcmp(data, content, size);
}

static bool names(const char *name, const char *content)
{
	int fd = open(name, O_RDONLY);
	bool same = fd >= 0 && holds(fd, content);

	if (fd >= 0)
		close(fd);
	return same;
}

static bool exists(const char *name)
{
	struct stat status;

	return lstat(name, &status) == 0;
}

/* Runs a check in another process, as this user, and returns its line. */
static int as_user(uid_t user, int (*check)(void))
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		if (user && (setgid(user) || setuid(user)))
			_exit(255);
		status = check();
		/* A status has 8 bits: the last of a line's number are enough to find it by. */
		_exit(status ? status % 255 + !(status % 255) : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static int as_another_user(void)
{
	REFUSED(open("roots", O_RDONLY), EACCES);
	REFUSED(open("closed/file", O_RDONLY), EACCES);
	REFUSED(chmod("roots", 0777), EPERM);
	EXPECT(make_closed("sticky/of-1001", "x") == 0);
	EXPECT(unlink("sticky/of-1000") == -1 && (errno == EPERM || errno == EACCES));
	EXPECT(unlink("sticky/of-1001") == 0);
	return 0;
}

static int permissions(void)
{
	static const mode_t modes[] = { 0, 0400, 0755, 01777, 02755, 04751 };
	struct stat status;

	EXPECT(make_closed("roots", "x") == 0);
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		EXPECT(chmod("roots", modes[i]) == 0 && stat("roots", &status) == 0);
		EXPECT((status.st_mode & 07777) == modes[i]);
	}
	EXPECT(chmod("roots", 0600) == 0);
	EXPECT(mkdir("closed", 0700) == 0 && make_closed("closed/file", "x") == 0);
	EXPECT(mkdir("sticky", 0755) == 0 && chmod("sticky", 01777) == 0);
	EXPECT(make_closed("sticky/of-1000", "x") == 0);
	EXPECT(chown("sticky/of-1000", 1000, 1002) == 0 && stat("sticky/of-1000", &status) == 0);
	EXPECT(status.st_uid == 1000 && status.st_gid == 1002);
	return as_user(1001, as_another_user);
}

static int lock_in_another(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_len = 10 };
	int fd = open("locked", O_RDWR);

	EXPECT(fd >= 0);
	EXPECT(fcntl(fd, F_SETLK, &lock) == -1 && (errno == EAGAIN || errno == EACCES));
	EXPECT(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK);
	return 0;
}

static int lock_what_is_free_in_another(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = 10, .l_len = 10 };
	int fd = open("locked", O_RDWR);

	EXPECT(fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0);
	return 0;
}

static int lock_ten_bytes(int (*in_another)(void))
{
	struct flock lock = { .l_type = F_WRLCK, .l_len = 10 };
	int fd = make("locked", "0123456789012345678901234567890");

	EXPECT(fd >= 0 && fcntl(fd, F_SETLK, &lock) == 0);
	int line = as_user(0, in_another);

	EXPECT(close(fd) == 0);
	return line;
}

static int record_locks(void)
{
	return lock_ten_bytes(lock_in_another);
}

static int locks_of_ranges(void)
{
	return lock_ten_bytes(lock_what_is_free_in_another);
}

static int flock_in_another(void)
{
	int fd = open("flocked", O_RDWR);

	EXPECT(fd >= 0);
	REFUSED(flock(fd, LOCK_EX | LOCK_NB), EWOULDBLOCK);
	REFUSED(flock(fd, LOCK_SH | LOCK_NB), EWOULDBLOCK);
	return 0;
}

static int flock_when_free(void)
{
	int fd = open("flocked", O_RDWR);

	EXPECT(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
	return 0;
}

static int whole_locks(void)
{
	int fd = make("flocked", "x");

	EXPECT(fd >= 0 && flock(fd, LOCK_EX) == 0);
	int line = as_user(0, flock_in_another);

	EXPECT(line == 0 && flock(fd, LOCK_UN) == 0);
	line = as_user(0, flock_when_free);
	/* The other's lock ended with it. */
	EXPECT(line == 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
	return close(fd) ? __LINE__ : 0;
}

static int mapped(void)
{
	char data[2];
	int fd = make("mapped", "");

	EXPECT(fd >= 0 && ftruncate(fd, 16 * PAGE) == 0);
	char *map = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	EXPECT(map != MAP_FAILED);
	map[0] = 'b';
	map[16 * PAGE - 1] = 'e';
	EXPECT(msync(map, 16 * PAGE, MS_SYNC) == 0 && munmap(map, 16 * PAGE) == 0);
	EXPECT(pread(fd, data, 1, 0) == 1 && pread(fd, data + 1, 1, 16 * PAGE - 1) == 1);
	EXPECT(data[0] == 'b' && data[1] == 'e');
	char *other = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	EXPECT(other != MAP_FAILED && other[0] == 'b' && other[PAGE] == 0);
	other[0] = 'p';
	EXPECT(pread(fd, data, 1, 0) == 1 && data[0] == 'b');
	EXPECT(munmap(other, 16 * PAGE) == 0 && close(fd) == 0);
	return 0;
}

static int rename_over_an_open_file(void)
{
	int fd = make("target", "old");

	EXPECT(fd >= 0 && make_closed("source", "new") == 0);
	EXPECT(rename("source", "target") == 0);
	EXPECT(holds(fd, "old") && names("target", "new") && !exists("source"));
	return close(fd) ? __LINE__ : 0;
}

static int unlink_of_an_open_file(void)
{
	int fd = make("gone", "content");

	EXPECT(fd >= 0 && unlink("gone") == 0 && !exists("gone"));
	EXPECT(holds(fd, "content"));
	EXPECT(pwrite(fd, "more", 4, 7) == 4 && holds(fd, "contentmore"));
	return close(fd) ? __LINE__ : 0;
}

static int hard_links(void)
{
	struct stat one, other;

	EXPECT(make_closed("one", "content") == 0 && link("one", "other") == 0);
	EXPECT(stat("one", &one) == 0 && stat("other", &other) == 0);
	EXPECT(one.st_ino == other.st_ino && one.st_nlink == 2 && other.st_nlink == 2);
	REFUSED(link("one", "other"), EEXIST);
	EXPECT(link("one", "third") == 0 && unlink("third") == 0 && names("other", "content"));
	return 0;
}

static int symbolic_links(void)
{
	char target[PAGE];

	EXPECT(make_closed("pointed-at", "content") == 0);
	EXPECT(symlink("pointed-at", "link") == 0 && symlink("nowhere", "dangling") == 0);
	EXPECT(readlink("link", target, sizeof(target)) == 10);
	EXPECT(!memcmp(target, "pointed-at", 10) && names("link", "content"));
	REFUSED(open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
	REFUSED(open("dangling", O_RDONLY), ENOENT);
	EXPECT(symlink("round", "round") == 0);
	REFUSED(open("round", O_RDONLY), ELOOP);
	return unlink("round") ? __LINE__ : 0;
}

static int attributes(void)
{
	char value[16];

	EXPECT(make_closed("attributed", "x") == 0);
	EXPECT(setxattr("attributed", "user.of-mine", "value", 5, 0) == 0);
	EXPECT(getxattr("attributed", "user.of-mine", value, sizeof(value)) == 5);
	EXPECT(!memcmp(value, "value", 5));
	REFUSED(setxattr("attributed", "user.of-mine", "x", 1, XATTR_CREATE), EEXIST);
	REFUSED(getxattr("attributed", "user.none", value, sizeof(value)), ENODATA);
	return 0;
}

static int append_records(void)
{
	char record[RECORD];
	int fd = open("appended", O_WRONLY | O_APPEND);

	EXPECT(fd >= 0);
	memset(record, 'a' + getpid() % 26, sizeof(record));
	for (int i = 0; i < RECORDS; i++)
		EXPECT(write(fd, record, sizeof(record)) == sizeof(record));
	return close(fd) ? __LINE__ : 0;
}

static int appending(void)
{
	static char data[2 * RECORDS * RECORD + 1];
	int counts[26] = { 0 }, kinds = 0, line, status;
	int fd = make("appended", "");
	pid_t pid = fork();

	if (pid == 0)
		_exit(append_records() != 0);
	line = append_records();
	EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && line == 0);
	EXPECT(pread(fd, data, sizeof(data), 0) == 2 * RECORDS * RECORD);
	for (int i = 0; i < 2 * RECORDS; i++) {
		char *record = data + i * RECORD;

		EXPECT(!memcmp(record, record + 1, RECORD - 1) && record[0] >= 'a');
		counts[record[0] - 'a']++;
	}
	for (int i = 0; i < 26; i++) {
		EXPECT(counts[i] == 0 || counts[i] == RECORDS);
		kinds += counts[i] != 0;
	}
	EXPECT(kinds == 2);
	return close(fd) ? __LINE__ : 0;
}

static int sparse(void)
{
	struct stat status;
	char data[PAGE], zeroes[PAGE] = { 0 };
	int fd = make("sparse", "begin");

	EXPECT(fd >= 0 && pwrite(fd, "end", 3, (off_t)5 << 30) == 3 && fstat(fd, &status) == 0);
	EXPECT(status.st_size == ((off_t)5 << 30) + 3 && status.st_blocks < 1024);
	EXPECT(pread(fd, data, PAGE, (off_t)3 << 30) == PAGE && !memcmp(data, zeroes, PAGE));
	EXPECT(pread(fd, data, PAGE, (off_t)5 << 30) == 3 && !memcmp(data, "end", 3));
	EXPECT(pread(fd, data, PAGE, (off_t)6 << 30) == 0);
	EXPECT(ftruncate(fd, 2) == 0 && ftruncate(fd, 8) == 0);
	EXPECT(pread(fd, data, PAGE, 0) == 8 && !memcmp(data, "be\0\0\0\0\0\0", 8));
	EXPECT(pwrite(fd, "end", 3, (off_t)1 << 30) == 3);
	return close(fd) ? __LINE__ : 0;
}

static int odd_names(void)
{
	static const char *const odd[] = {
		"Stra\xc3\x9f" "e \xe2\x82\xac", "\xf0\x9f\x90\xa7", "with a space", "-rf", "new\nline",
		"no UTF-8 \xff\xfe", "back\\slash", "quote'\"", "...",
	};
	size_t count = sizeof(odd) / sizeof(*odd), found = 0;
	char longest[NAME_BYTES + 2] = { 0 };
	struct dirent *entry;

	EXPECT(mkdir("names", 0755) == 0 && chdir("names") == 0);
	memset(longest, 'n', NAME_BYTES + 1);
	EXPECT(open(longest, O_CREAT | O_RDWR, 0644) == -1 && errno == ENAMETOOLONG);
	longest[NAME_BYTES] = 0;
	EXPECT(make_closed(longest, longest) == 0 && names(longest, longest));
	for (size_t i = 0; i < count; i++)
		EXPECT(make_closed(odd[i], odd[i]) == 0 && names(odd[i], odd[i]));
	DIR *folder = opendir(".");

	EXPECT(folder != NULL);
	while ((entry = readdir(folder)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			found += names(entry->d_name, entry->d_name);
	EXPECT(closedir(folder) == 0 && chdir("..") == 0);
	EXPECT(found == count + 1);
	return 0;
}

static int folders(void)
{
	EXPECT(mkdir("outer", 0755) == 0 && mkdir("outer/inner", 0755) == 0);
	REFUSED(mkdir("outer", 0755), EEXIST);
	REFUSED(rmdir("outer"), ENOTEMPTY);
	REFUSED(rename("outer", "outer/inner/self"), EINVAL);
	REFUSED(unlink("outer"), EISDIR);
	EXPECT(mkdir("empty", 0755) == 0 && rename("outer", "empty") == 0);
	EXPECT(exists("empty/inner") && !exists("outer"));
	REFUSED(open("empty/none/file", O_RDONLY), ENOENT);
	EXPECT(make_closed("file", "x") == 0);
	REFUSED(open("file/under", O_RDONLY), ENOTDIR);
	REFUSED(open("file", O_RDONLY | O_DIRECTORY), ENOTDIR);
	REFUSED(open("file", O_RDWR | O_CREAT | O_EXCL, 0644), EEXIST);
	EXPECT(rmdir("empty/inner") == 0 && rmdir("empty") == 0);
	return 0;
}

static int times(void)
{
	struct timespec past[2] = { { 1000000000, 123456789 }, { 1100000000, 987654321 } };
	struct stat status;
	int fd = make("dated", "x");

	EXPECT(fd >= 0 && utimensat(AT_FDCWD, "dated", past, 0) == 0 && stat("dated", &status) == 0);
	EXPECT(status.st_mtim.tv_sec == past[1].tv_sec && status.st_atim.tv_sec == past[0].tv_sec);
	EXPECT(pwrite(fd, "y", 1, 0) == 1 && fsync(fd) == 0 && close(fd) == 0);
	EXPECT(stat("dated", &status) == 0 && status.st_mtim.tv_sec > past[1].tv_sec);
	return 0;
}

static int nanoseconds(void)
{
	struct timespec past[2] = { { 1000000000, 123456789 }, { 1100000000, 987654321 } };
	struct stat status;

	EXPECT(make_closed("exact", "x") == 0 && utimensat(AT_FDCWD, "exact", past, 0) == 0);
	EXPECT(stat("exact", &status) == 0 && status.st_mtim.tv_nsec == past[1].tv_nsec);
	return 0;
}

/* A guest makes pipes and sockets, and no device files: by these it would have the host's. */
static int special_files(void)
{
	struct stat status;

	EXPECT(mkfifo("pipe", 0644) == 0 && stat("pipe", &status) == 0 && S_ISFIFO(status.st_mode));
	EXPECT(mknod("device", S_IFBLK | 0600, makedev(8, 0)) == -1 && errno == EPERM);
	EXPECT(mknod("device", S_IFCHR | 0600, makedev(1, 3)) == -1 && errno == EPERM);
	return 0;
}

static int many(void)
{
	char name[32];
	int found = 0;
	struct dirent *entry;
	struct statfs status;

	EXPECT(statfs(".", &status) == 0 && status.f_bsize > 0 && status.f_blocks > 0);
	EXPECT(mkdir("many", 0755) == 0 && chdir("many") == 0);
	for (int i = 0; i < file_count; i++) {
		snprintf(name, sizeof(name), "file %d", i);
		EXPECT(make_closed(name, name) == 0);
	}
	DIR *folder = opendir(".");

	EXPECT(folder != NULL);
	while ((entry = readdir(folder)))
		found += entry->d_name[0] != '.';
	EXPECT(found == file_count);
	for (int i = 0; i < file_count; i++) {
		snprintf(name, sizeof(name), "file %d", i);
		EXPECT(names(name, name) && unlink(name) == 0);
	}
	rewinddir(folder);
	while ((entry = readdir(folder)))
		EXPECT(entry->d_name[0] == '.');
	EXPECT(closedir(folder) == 0 && chdir("..") == 0 && rmdir("many") == 0);
	return 0;
}

/* In "small", a file system of the host's that is soon full. */
static int full(void)
{
	static char data[64 * 1024];
	ssize_t count = 0;
	int fd = open("small/filling", O_RDWR | O_CREAT, 0644);
	bool told = false;

	EXPECT(fd >= 0);
	for (int i = 0; i < 1000 && !told; i++) {
		count = write(fd, data, sizeof(data));
		told = count == -1 && errno == ENOSPC;
		EXPECT(told || count > 0);
	}
	/* What is written by way of a cache fails when that is written back. */
	told |= fsync(fd) == -1 && errno == ENOSPC;
	told |= close(fd) == -1 && errno == ENOSPC;
	EXPECT(told);
	EXPECT(unlink("small/filling") == 0 && make_closed("small/after", "room again") == 0);
	return names("small/after", "room again") ? 0 : __LINE__;
}

#define CHECK(function) { #function, function }

static const struct {
	const char *name;
	int (*check)(void);
} checks[] = {
	CHECK(permissions), CHECK(record_locks), CHECK(locks_of_ranges), CHECK(whole_locks),
	CHECK(mapped), CHECK(rename_over_an_open_file), CHECK(unlink_of_an_open_file),
	CHECK(hard_links), CHECK(symbolic_links), CHECK(attributes), CHECK(appending), CHECK(sparse),
	CHECK(odd_names), CHECK(folders), CHECK(times), CHECK(nanoseconds), CHECK(special_files),
	CHECK(many), CHECK(full),
};

static bool is_wanted(const char *name, int count, char **wanted)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(name, wanted[i]))
			return true;
	return count == 0;
}

int main(int argc, char **argv)
{
	int failures = 0, folder = argc < 3 ? -1 : open(argv[1], O_RDONLY | O_DIRECTORY);

	if (folder < 0) {
		fprintf(stderr, "posix FOLDER FILES [CHECK...]\n");
		return 255;
	}
	file_count = atoi(argv[2]);
	umask(022);
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++) {
		if (!is_wanted(checks[i].name, argc - 3, argv + 3))
			continue;
		if (fchdir(folder))
			return 255;
		errno = 0;
		int line = checks[i].check();

		if (line)
			printf("not ok %s: line %d, %s\n", checks[i].name, line, strerror(errno));
		else
			printf("ok %s\n", checks[i].name);
		fflush(stdout);
		failures += line != 0;
	}
	return failures;
}
