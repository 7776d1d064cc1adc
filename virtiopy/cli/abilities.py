"""What the host can do for a VM: each ability looked for by trying it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virtiopy.accel import AcceleratorName, kvm_interprets, select
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.accel.kvm.system import Capability, Kvm
from virtiopy.accel.kvm.vcpu import make_waker
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.boot.guests import guest_names
from virtiopy.cpu.x86 import Registers, protected_mode
from virtiopy.errors import HostError
from virtiopy.host.storage import DAEMON
from virtiopy.memory import GuestMemory
from virtiopy.sandbox.landlock import landlock_version
from virtiopy.sandbox.process import has_filters
from virtiopy.vhost.kernel.net import VhostNet
from virtiopy.vm.hello import Mode, mode_works

MODE_TIMEOUT_SECONDS = 2.0


@dataclass(slots=True, frozen=True)
class Finding:
    """One row: `works` is None for what is only told; `remedy` is for what does not work."""

    what: str
    works: bool | None
    detail: str
    remedy: str = ""


#: What virtiopy uses of KVM beyond the barest, and what for.
_CAPABILITIES = {
    Capability.IRQCHIP: "interrupt chips in the kernel",
    Capability.IMMEDIATE_EXIT: "stopping a vCPU without a race",
    Capability.BINARY_STATS_FD: "the kernel's own exit counts",
    Capability.IOEVENTFD: "kicks that do not wait for userspace",
    Capability.IRQFD: "interrupts without a system call of ours",
    Capability.READONLY_MEM: "register reads without exits",
}


def examine() -> Iterator[Finding]:
    """Try the host's abilities, one after the other."""
    yield Finding("kernel", None, " ".join((os.uname().sysname, os.uname().release)))
    yield from _examine_kvm()
    yield _examine_tcg()
    yield _examine_stop()
    yield _device("/dev/net/tun", "taps", "load the tun module, or pass the device in")
    yield _examine_vhost()
    yield from _examine_sandbox()
    yield _examine_huge_pages()
    yield _examine_qemu()
    yield _examine_storage_daemon()
    names = ", ".join(guest_names())
    yield Finding(
        "guest images",
        bool(names),
        names,
        "" if names else "build them with make setup, or install virtiopy again",
    )


def _examine_kvm() -> Iterator[Finding]:
    try:
        system = Kvm()
    except HostError as error:
        yield Finding("/dev/kvm", False, "", str(error))
        return
    with system:
        modules = [
            name
            for name in ("kvm_intel", "kvm_amd", "kvm_pvm")
            if Path("/sys/module", name).exists()
        ]
        yield Finding("/dev/kvm", True, f"API version 12, {' '.join(modules) or 'built in'}")
        for capability, purpose in _CAPABILITIES.items():
            works = system.check_extension(capability) > 0
            remedy = "" if works else "use a newer kernel"
            yield Finding(f"KVM_CAP_{capability.name}", works, purpose, remedy)
    make_accelerator = partial(KvmAccelerator, interrupts=False)
    for mode in Mode:
        works = mode_works(mode, make_accelerator, MODE_TIMEOUT_SECONDS)
        remedy = "" if works else "use --accel tcg, or a machine with VT-x or SVM"
        yield Finding(f"guest in {mode} mode", works, "virtiopy hello runs in it", remedy)
    yield _examine_ring0_speed()


def _examine_tcg() -> Finding:
    try:
        with GuestMemory.allocate(1 << 20) as memory:
            select(AcceleratorName.TCG, memory).close()
    except HostError as error:
        return Finding("software CPU (tcg)", False, "guests without KVM", str(error))
    return Finding("software CPU (tcg)", True, "guests without KVM: --accel tcg")


def _examine_ring0_speed() -> Finding:
    """Count a loop's instructions in ring 0, where guests of virtiopy live."""
    rate = measure_ring0_speed()
    fast = rate > 50e6
    chosen = (
        "for a kernel of one CPU --accel auto takes the software CPU (tcg), for other guests KVM"
        if kvm_interprets()
        else "--accel auto takes KVM for all guests"
    )
    slow = "fit for tests, not for benchmarks: this KVM interprets ring 0"
    return Finding(
        "guest ring 0",
        None,
        f"{rate / 1e6:.3g} million instructions a second; {chosen}",
        "" if fast else slow,
    )


def measure_ring0_speed() -> float:
    """Return the instructions a second of a two-instruction loop in protected mode."""
    # mov ecx, <turns>; again: dec ecx; jnz again; hlt
    address, turns = 0x1000, 10_000
    while True:
        code = b"\xb9" + turns.to_bytes(4, "little") + b"\x49\x75\xfd\xf4"
        image = GuestImage(Path(), address, None, (LoadSegment(address, code, len(code)),))
        with GuestMemory.allocate(1 << 20) as memory:
            image.load(memory)
            accelerator = KvmAccelerator(memory, interrupts=False)
            with accelerator.create_cpu() as cpu:
                cpu.set_system_registers(protected_mode())
                cpu.set_registers(Registers(rip=address))
                start = time.perf_counter()
                cpu.run()
                seconds = time.perf_counter() - start
            accelerator.close()
        if seconds > 0.02 or turns > 1 << 30:
            return 2 * turns / seconds
        turns *= 4


def _examine_stop() -> Finding:
    event = os.eventfd(0)
    try:
        waker = make_waker(event)
        name = waker.name
        waker.close()
    finally:
        os.close(event)
    detail = {
        "io_uring": "without a signal, by io_uring",
        "signal": "by a signal, as io_uring is not to be had",
    }
    return Finding("stopping a vCPU", True, detail[name])


def _device(path: str, purpose: str, remedy: str) -> Finding:
    if not Path(path).exists():
        return Finding(path, False, purpose, remedy)
    works = os.access(path, os.R_OK | os.W_OK)
    return Finding(path, works, purpose, "" if works else "run as root, or change its mode")


def _examine_vhost() -> Finding:
    purpose = "network rings in the kernel: --net vhost=on"
    try:
        with VhostNet() as vhost:
            return Finding(VhostNet.path, True, f"{purpose}; features {vhost.features:#x}")
    except HostError as error:
        return Finding(VhostNet.path, False, purpose, str(error))


def _examine_sandbox() -> Iterator[Finding]:
    version = landlock_version()
    yield Finding(
        "Landlock",
        version > 0,
        f"--sandbox keeps files from a VMM: version {version}",
        "" if version else "use a kernel with Landlock, and name it in the kernel's lsm=...",
    )
    works = has_filters()
    yield Finding(
        "seccomp",
        works,
        "--sandbox keeps system calls from a VMM",
        "" if works else "use a kernel for x86-64 with CONFIG_SECCOMP_FILTER",
    )


def _examine_huge_pages() -> Finding:
    try:
        free = int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except OSError:
        return Finding("huge pages", False, "", "use a kernel with hugetlbfs")
    return Finding(
        "huge pages",
        free > 0,
        f"{free} of 2 MiB free, for --hugepages",
        "" if free else "write a number to /proc/sys/vm/nr_hugepages",
    )


def _examine_qemu() -> Finding:
    qemu = shutil.which("qemu-system-x86_64")
    remedy = "install qemu-system-x86: tests and benchmarks compare with it"
    if qemu is None:
        return Finding("QEMU", False, "", remedy)
    answer = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False)
    return Finding("QEMU", answer.returncode == 0, answer.stdout.partition("\n")[0])


def _examine_storage_daemon() -> Finding:
    purpose = "images in qcow2 and other formats: --disk disk.qcow2"
    works = shutil.which(DAEMON) is not None and shutil.which("setpriv") is not None
    remedy = "" if works else "install Debian's qemu-system-common and util-linux"
    return Finding(DAEMON, works, purpose, remedy)
