/* SPDX-License-Identifier: MIT */
/* The headers behind cdef.h, and the functions of the C files. */
#ifndef VIRTIOPY_NATIVE_H
#define VIRTIOPY_NATIVE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>
#include <asm/bootparam.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <malloc.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <linux/virtio_balloon.h>
#include <linux/vhost.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_console.h>
#include <linux/virtio_fs.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_net.h>
#include <linux/virtio_scsi.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include "sandbox.h"
#include "tcg.h"
#include "vhost_user.h"
#include "virtq.h"
#include "worker.h"

/* Names for the members of the union in struct kvm_run, which have none in the header. */
typedef __typeof__(((struct kvm_run *)0)->hw) vp_exit_hw;
typedef __typeof__(((struct kvm_run *)0)->fail_entry) vp_exit_fail_entry;
typedef __typeof__(((struct kvm_run *)0)->ex) vp_exit_ex;
typedef __typeof__(((struct kvm_run *)0)->io) vp_exit_io;
typedef __typeof__(((struct kvm_run *)0)->mmio) vp_exit_mmio;
typedef __typeof__(((struct kvm_run *)0)->hypercall) vp_exit_hypercall;
typedef __typeof__(((struct kvm_run *)0)->tpr_access) vp_exit_tpr_access;
typedef __typeof__(((struct kvm_run *)0)->internal) vp_exit_internal;
typedef __typeof__(((struct kvm_run *)0)->system_event) vp_exit_system_event;
typedef __typeof__(((struct kvm_run *)0)->eoi) vp_exit_eoi;
typedef __typeof__(((struct kvm_run *)0)->msr) vp_exit_msr;
typedef __typeof__(((struct kvm_run *)0)->notify) vp_exit_notify;

/* Xen's boot protocol for PVH guests, xen/include/public/arch-x86/hvm/start_info.h. */
#define HVM_START_MAGIC_VALUE	0x336ec578
#define HVM_MEMMAP_TYPE_RAM	1
#define XEN_ELFNOTE_PHYS32_ENTRY 18

struct hvm_start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct hvm_modlist_entry {
	uint64_t paddr;
	uint64_t size;
	uint64_t cmdline_paddr;
	uint64_t reserved;
};

struct hvm_memmap_table_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

/* What a multiboot kernel is told (Multiboot Specification 0.6.96, 3.3). */
struct multiboot_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
	uint32_t mmap_length, mmap_addr;
	uint32_t rest[16];
};

struct multiboot_mmap_entry {
	uint32_t size;
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));

struct multiboot_module {
	uint32_t mod_start, mod_end, string, reserved;
};

/* What follows the control message RESIZE (virtio 5.3.6.2); no header has it. */
struct virtio_console_resize {
	uint16_t cols, rows;
};

struct vp_wake;
struct vp_guard;

/* ioctl.c */
int vp_ioctl(int fd, unsigned long request, uintptr_t argument);
int vp_fallocate(int fd, int mode, int64_t offset, int64_t length);
int vp_ofd_lock(int fd, int64_t offset);
int vp_ofd_is_locked(int fd, int64_t offset);
int vp_map_over(uintptr_t address, size_t length, int fd, int64_t offset);
int vp_is_in_memory(int fd);

/* fences.c */
uint16_t vp_load_acquire(const uint16_t *location);
void vp_store_release(uint16_t *location, uint16_t value);
void vp_memory_barrier(void);

/* wake.c */
struct vp_wake *vp_wake_new(int eventfd, int *error);
void vp_wake_drain(struct vp_wake *wake);
void vp_wake_free(struct vp_wake *wake);
int vp_ignore_signal(int signal_number);

/* guard.c */
struct vp_guard *vp_guard_new(uintptr_t start, size_t length, size_t page, int eventfd);
int vp_guard_hit(const struct vp_guard *guard);
void vp_guard_free(struct vp_guard *guard);

/* eventfd.c */
int vp_eventfd_signal(int fd);
int vp_eventfd_take(int fd, uint64_t *count);

/* dirty.c */
void vp_log_pages(uint8_t *log, uint64_t first, uint64_t last);

#endif
