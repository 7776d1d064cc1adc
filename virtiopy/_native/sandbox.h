/* SPDX-License-Identifier: MIT */
/* sandbox.c */
#ifndef VIRTIOPY_SANDBOX_H
#define VIRTIOPY_SANDBOX_H

#include <stddef.h>
#include <stdint.h>

/* struct sock_filter, in names that Python's declarations can have. */
struct vp_bpf {
	uint16_t code;
	uint8_t jt, jf;
	uint32_t k;
};

const char *vp_syscall_name(int number);
int vp_syscall_number(const char *name);
int vp_landlock_version(void);
int vp_landlock_new(uint64_t files, uint64_t network, uint64_t scoped, size_t size);
int vp_landlock_allow(int ruleset, int fd, uint64_t access);
int vp_confine(int landlock);
int vp_drop_bounding_set(int signal_number);
int vp_sandbox_enter(int landlock, const struct vp_bpf *program, size_t length, int signal_number);
int vp_has_seccomp(void);

#endif
