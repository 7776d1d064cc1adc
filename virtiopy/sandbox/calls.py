"""The system calls that a process may still make, by what it is to do."""

import enum

#: What every role makes: files that are open or that Landlock lets it open, memory, time, threads
#: of its own, and messages on sockets that are connected. Names, with spaces between.
STEADY = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
fsync fdatasync sync_file_range fallocate ftruncate fadvise64 readahead sendfile copy_file_range
open openat openat2 stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2
readlink readlinkat getdents getdents64 getcwd umask flock fcntl dup dup2 dup3 pipe pipe2
rename renameat renameat2 unlink unlinkat rmdir mkdir mkdirat
getxattr lgetxattr fgetxattr fsetxattr
mmap mprotect munmap mremap brk madvise mincore msync mlock munlock mlock2 memfd_create membarrier
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack
pause alarm setitimer getitimer timer_create timer_settime timer_gettime timer_delete
timer_getoverrun timerfd_create timerfd_settime timerfd_gettime nanosleep clock_nanosleep
clock_gettime clock_getres gettimeofday time times getrusage
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
epoll_pwait2 eventfd eventfd2 signalfd4
io_setup io_submit io_getevents io_pgetevents io_cancel io_destroy
io_uring_setup io_uring_enter io_uring_register
futex set_robust_list get_robust_list rseq set_tid_address sched_yield sched_getaffinity
sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max
sched_get_priority_min gettid getpid getppid getuid geteuid getgid getegid getresuid getresgid
getpgrp getpgid getsid getgroups capget exit exit_group restart_syscall wait4 waitid arch_prctl
uname sysinfo getrlimit getrandom getcpu getpriority
listen accept accept4 recvfrom recvmsg recvmmsg sendto sendmsg sendmmsg shutdown getsockname
getpeername getsockopt setsockopt socketpair
"""

#: What it takes to start another program, and what such a program makes at its own start; one
#: that opens images also makes those of `CONNECTING`.
STARTING = """
execve fork vfork clone clone3 kill tkill tgkill prctl prlimit64 setpgid
setsid chdir fchdir capset chmod fchmod fchmodat chown fchown fchownat symlink link linkat
symlinkat mknod mknodat truncate utimensat setrlimit rt_sigqueueinfo landlock_restrict_self
"""

#: What a server of files makes, as one user or another, beyond what its start takes; it needs no
#: sockets but those that it was given.
SERVING = """
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid
lchown utime utimes futimesat setxattr lsetxattr listxattr llistxattr flistxattr
removexattr lremovexattr fremovexattr sync syncfs pidfd_open
landlock_create_ruleset landlock_add_rule
"""
CONNECTING = "socket connect bind"

#: What such a server makes, beyond that, where it has its clients connect to it, and where it gives
#: up by itself what it needs no more: virtiofsd. Sockets are Unix ones.
ADMITTING = "connect bind chroot seccomp"


class Ability(enum.Flag):
    """What an option of the command line needs, beyond what every role does."""

    NONE = 0
    #: Connect to Unix sockets, over and over: a backend, or a frontend that listens.
    CONNECT = enum.auto()
    #: Start a helper again that has ended: qemu-storage-daemon.
    START = enum.auto()
    #: Start a server of files, and be one: what a launcher does, in a root of its own.
    SERVE = enum.auto()
    #: Have one that clients connect to: with SERVE.
    ADMIT = enum.auto()
