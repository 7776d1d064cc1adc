"""Firmware with virtio drivers of its own, in QEMU, on devices that are served over vhost-user.

QEMU's devices are transitional unless disable-legacy=on: then OVMF and iPXE use their drivers for
legacy devices, which know no VIRTIO_F_VERSION_1.
"""

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.guest.support import QEMU, needs_qemu
from tests.guest.vhost_user import Backend, serve
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE
from virtiopy.closing import Closing
from virtiopy.host.tap import NAMESPACES

OVMF, OVMF_VARS = Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")
#: What QEMU gives its virtio network devices: it sets the device ID in it, so it is not named.
IPXE = Path("/usr/lib/ipxe/qemu/efi-virtio.rom")

needs_ovmf = pytest.mark.skipif(
    not OVMF.exists() or shutil.which("mformat") is None, reason="OVMF (ovmf) or mtools is missing"
)
needs_ipxe = pytest.mark.skipif(
    not IPXE.exists() or shutil.which("dnsmasq", path=f"{os.defpath}:/usr/sbin") is None,
    reason="iPXE's ROM (ipxe-qemu) or dnsmasq is missing",
)

#: How a driver finds the device: with QEMU's defaults, and without the legacy interface.
DEFAULT, MODERN = "", ",disable-legacy=on"


def each_kind(by_night: str | None = None) -> pytest.MarkDecorator:
    """Have a test be run for both kinds, for the one `by_night` in `make nightly` alone.

    What OVMF boots takes ten seconds, of which `make test` has enough with one of each kind.
    """
    kinds = [
        pytest.param(option, id=name, marks=[pytest.mark.nightly] if option == by_night else [])
        for option, name in ((DEFAULT, "default"), (MODERN, "modern"))
    ]
    return pytest.mark.parametrize("option", kinds)


#: Without KVM: firmware begins in real mode.
MACHINE = [
    *("-m", "256M", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"),
    *("-machine", "q35,accel=tcg,memory-backend=ram", "-display", "none", "-no-reboot"),
    *("-nodefaults", "-no-user-config", "-serial", "none", "-monitor", "none", "-net", "none"),
]


def run(*arguments: object) -> str:
    """Run a tool that has to succeed; returns what it prints."""
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="replace")


class Firmware(Closing):
    """QEMU with firmware in it, until it ends or is ended."""

    def __init__(self, *arguments: object) -> None:
        command = [QEMU, *MACHINE, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def wait(self) -> tuple[int, str]:
        """Wait for its end; returns its status and what it printed."""
        output, _ = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, output.decode(errors="replace")

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None


def disk(path: Path, option: str) -> list[str]:
    """Return QEMU's options for the disk that is served at `path`, the first to boot from."""
    return [
        *("-chardev", f"socket,id=disk,path={path}"),
        *("-device", f"vhost-user-blk-pci,chardev=disk,bootindex=0{option}"),
    ]


# OVMF: its shell copies a file on a disk of ours


@needs_qemu
@needs_ovmf
@each_kind(by_night=DEFAULT)
def test_ovmf_copies_a_file_of_3_mb(tmp_path: Path, option: str) -> None:
    image, socket = tmp_path / "disk.img", tmp_path / "blk.sock"
    data, script = tmp_path / "data.bin", tmp_path / "startup.nsh"
    data.write_bytes(os.urandom(3 << 20))
    script.write_text("fs0:\r\ncopy data.bin copy.bin\r\nreset -s\r\n")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run("mformat", "-i", image, "-F", "::")
    run("mcopy", "-i", image, data, script, "::")
    variables = tmp_path / "vars.fd"
    shutil.copy(OVMF_VARS, variables)

    with serve("blk", str(image), socket) as backend:
        flash = f"if=pflash,format=raw,readonly=on,file={OVMF}"
        store = f"if=pflash,format=raw,file={variables}"
        with Firmware("-drive", flash, "-drive", store, *disk(socket, option)) as firmware:
            status, output = firmware.wait()
        assert status == 0, output + backend.output

    copy = tmp_path / "copy.bin"
    run("mcopy", "-i", image, "::copy.bin", copy)
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(data.read_bytes()).digest()


# SeaBIOS: a boot sector of ours reads and writes by INT 13h

#: Reads 64 sectors from sector 8 on, and writes them from sector 1000 on; 0 to port 0xF4 for done.
BOOT_SECTOR = """\
.code16
start:
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %ss
	mov $0x7c00, %sp
	mov $read, %si
	mov $0x42, %ah
	int $0x13
	jc failed
	mov $write, %si
	mov $0x4300, %ax
	mov $0x80, %dl
	int $0x13
	jc failed
	mov $0x10, %al
	jmp end
failed:
	mov $0x11, %al
end:
	out %al, $0xf4
	hlt
	jmp end
read:
	.byte 16, 0
	.word 64, 0, 0x1000
	.quad 8
write:
	.byte 16, 0
	.word 64, 0, 0x1000
	.quad 1000
.org 510
	.word 0xaa55
"""


@needs_qemu
@each_kind()
def test_seabios_reads_and_writes(tmp_path: Path, option: str) -> None:
    image, socket = tmp_path / "disk.img", tmp_path / "blk.sock"
    source, object_, sector = tmp_path / "boot.s", tmp_path / "boot.o", tmp_path / "boot.bin"
    source.write_text(BOOT_SECTOR)
    run("as", "--32", "-o", object_, source)
    run("ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-o", sector, object_)
    data = os.urandom(64 * 512)
    with image.open("wb") as file:
        file.truncate(8 << 20)
        file.write(sector.read_bytes())
        file.seek(8 * 512)
        file.write(data)

    with serve("blk", str(image), socket, judged=True) as backend:
        with Firmware(
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"), *disk(socket, option)
        ) as firmware:
            status, output = firmware.wait()
        # isa-debug-exit makes a value of 0x10 a status of 0x21.
        assert status == 0x21, output + backend.output
    assert "Drivers: 0 MUST broken, 0 SHOULD broken" in backend.output

    with image.open("rb") as file:
        file.seek(1000 * 512)
        assert file.read(64 * 512) == data


# iPXE: it fetches a file over a network device of ours


class TftpServer(Closing):
    """Serves addresses and the files of a folder at t0 in a network namespace, until closed.

    The interface is there when the device of `backend` is ready.
    """

    def __init__(self, backend: Backend, namespace: Namespace, folder: Path, log: Path) -> None:
        self._log = log
        deadline = time.monotonic() + PATIENCE
        while "is ready at" not in backend.output:
            assert time.monotonic() < deadline, backend.output
            time.sleep(0.01)
        command = [
            *("nsenter", f"--net={NAMESPACES / namespace.name}", "dnsmasq", "--no-daemon"),
            *("--port=0", "--conf-file=/dev/null", "--log-dhcp", "--user=root"),
            *(f"--dhcp-leasefile={log.with_suffix('.leases')}", "--interface=t0"),
            *("--bind-interfaces", "--dhcp-range=192.0.2.50,192.0.2.99,255.255.255.0"),
            *("--dhcp-boot=boot.ipxe", "--enable-tftp", f"--tftp-root={folder}"),
        ]
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, "PATH": path}
            )

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    @property
    def output(self) -> str:
        """What it has said; it still runs."""
        said = self._log.read_text()
        assert self._process.poll() is None, said
        return said


@needs_qemu
@needs_ipxe
@needs_taps
@each_kind(by_night=MODERN)
def test_ipxe_fetches_a_file_of_2_mb(tmp_path: Path, option: str) -> None:
    socket, files, log = tmp_path / "net.sock", tmp_path / "files", tmp_path / "dnsmasq.log"
    files.mkdir()
    (files / "boot.ipxe").write_text("#!ipxe\nimgfetch tftp://192.0.2.1/data.bin\nsleep 100\n")
    (files / "data.bin").write_bytes(os.urandom(2 << 20))
    with Namespace() as namespace:
        tap = f"tap=t0,create=on,netns={namespace.name},address=192.0.2.1/24"
        with (
            serve("net", tap, socket) as backend,
            TftpServer(backend, namespace, files, log) as server,
            Firmware(
                *("-chardev", f"socket,id=net,path={socket}"),
                *("-netdev", "vhost-user,id=net,chardev=net"),
                *("-device", f"virtio-net-pci,netdev=net,bootindex=0{option}"),
            ) as firmware,
        ):
            deadline = time.monotonic() + PATIENCE
            # dnsmasq says so when the last block was acknowledged.
            while f"sent {files}/data.bin to 192.0.2." not in server.output:
                assert firmware.runs, firmware.wait()
                assert time.monotonic() < deadline, server.output + backend.output
                time.sleep(0.05)
