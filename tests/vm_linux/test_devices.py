"""Linux's own drivers on every device of ours, in our VM."""

import hashlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from tests.vm_linux.conftest import DISK_SIZE, GUEST, HOST, MTU, PORT, Rig
from tests.vm_linux.machine import COMMAND_SECONDS, Linux
from virtiopy.devices.blk import Blk
from virtiopy.devices.streams import Size
from virtiopy.spec import DeviceStatus

MIB = 1 << 20
#: What a bulk transfer from the guest carries many times, bytes.
PIECE = 4 * MIB


def wait_until(true: Callable[[], object], seconds: float = COMMAND_SECONDS) -> None:
    """Wait until something of the devices' is so, which nothing tells of."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_device_has_its_driver(linux: Linux) -> None:
    drivers = linux.sh(
        "for d in /sys/bus/virtio/devices/*; do basename $(readlink $d/driver); done | sort"
    )
    assert drivers.split() == [
        *("virtio_balloon", "virtio_blk", "virtio_blk", "virtio_blk"),
        *("virtio_console", "virtio_net", "virtio_rng", "virtio_scsi"),
        "vmw_vsock_virtio_transport",
    ]
    for slot in linux.machine.slots:
        assert slot.transport.lifecycle.status & DeviceStatus.DRIVER_OK, slot.name


def test_nothing_in_the_kernels_log_is_a_warning_about_a_device(linux: Linux) -> None:
    assert "virtio" not in linux.sh("dmesg -r | grep '^<[0-4]>'", check=False)


def test_the_date_is_the_hosts(linux: Linux) -> None:
    assert abs(int(linux.sh("date +%s")) - time.time()) < 60
    assert linux.sh("cat /sys/class/rtc/rtc0/name").startswith("rtc_cmos")


# blk


def test_a_disk_tells_what_it_is(linux: Linux) -> None:
    assert linux.sh("cat /sys/block/vda/serial") == "0123456789"
    assert linux.sh("cat /sys/block/vda/size") == str(DISK_SIZE // 512)
    assert linux.sh("cat /sys/block/vda/ro /sys/block/vdb/ro").split() == ["0", "1"]
    assert linux.sh("cat /sys/block/vda/queue/write_cache") == "write back"


def test_a_file_system_is_sound_in_the_guest_and_on_the_host(rig: Rig) -> None:
    written = rig.linux.sh(
        "host mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt && "
        "dd if=/dev/urandom of=/mnt/known bs=100k count=20 2>/dev/null && sha256sum /mnt/known && "
        "for i in 1 2 3 4 5 6 7 8 9; do cp /mnt/known /mnt/$i; done && sync && umount /mnt && "
        "host e2fsck -f -n /dev/vda >/tmp/fsck 2>&1; echo $?"
    ).split()
    assert written[-1] == "0", rig.linux.sh("cat /tmp/fsck")
    check = subprocess.run(
        ["/usr/sbin/e2fsck", "-f", "-n", rig.disk], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout
    content = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "cat /7", rig.disk], capture_output=True, check=True
    ).stdout
    assert hashlib.sha256(content).hexdigest() == written[0]


def test_fio_reads_what_it_wrote(linux: Linux) -> None:
    report = linux.sh(
        "cd /tmp && host fio --name=verified --filename=/dev/vda --size=4M --rw=randrw "
        "--bsrange=4k-64k --ioengine=psync --direct=1 --verify=crc32c --verify_fatal=1 "
        "--verify_state_save=0 --do_verify=1 --minimal",
    )
    fields = report.splitlines()[-1].split(";")
    assert fields[4] == "0", report  # errors
    assert int(fields[46]) > 0  # KiB written


def test_the_end_of_the_disk_can_be_read_and_nothing_beyond(linux: Linux) -> None:
    last = DISK_SIZE // 4096 - 1
    linux.sh(f"dd if=/dev/vda of=/dev/null bs=4k skip={last} count=1 iflag=direct 2>&1")
    assert "0+0 records" in linux.sh(f"dd if=/dev/vda of=/dev/null bs=4k skip={last + 1} 2>&1")


def test_a_disk_grows_and_shrinks_while_it_is_in_use(rig: Rig) -> None:
    disk = rig.linux.slot("blk0").device
    assert isinstance(disk, Blk)

    def resize(size: int) -> None:
        os.truncate(rig.disk, size)
        disk.capacity_changed()
        wait_until(lambda: rig.linux.sh("cat /sys/block/vda/size") == str(size // 512))

    resize(DISK_SIZE + 16 * MIB)
    rig.linux.sh(f"printf beyond | dd of=/dev/vda bs=1M seek={DISK_SIZE // MIB} conv=fsync 2>&1")
    with rig.disk.open("rb") as image:
        image.seek(DISK_SIZE)
        assert image.read(6) == b"beyond"
    resize(DISK_SIZE)
    rig.linux.sh(
        f"! dd if=/dev/vda of=/dev/null bs=1M skip={DISK_SIZE // MIB} count=1 "
        "iflag=direct 2>&1 | grep '1+0 records in'"
    )


def test_a_read_only_disk_is_not_written(rig: Rig) -> None:
    before = (rig.folder / "second.img").read_bytes()
    rig.linux.sh("! dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>&1")
    assert (rig.folder / "second.img").read_bytes() == before


def test_discarded_blocks_are_given_back_to_the_host(rig: Rig) -> None:
    rig.linux.sh("dd if=/dev/urandom of=/dev/vda bs=1M seek=16 count=8 conv=fsync 2>&1")
    before = rig.disk.stat().st_blocks
    rig.linux.sh(f"blkdiscard -o {16 * MIB} -l {8 * MIB} /dev/vda")
    assert rig.disk.stat().st_blocks <= before - 8 * MIB // 512
    with rig.disk.open("rb") as image:
        image.seek(16 * MIB)
        assert image.read(8 * MIB) == bytes(8 * MIB)


def test_blocks_are_zeroed(rig: Rig) -> None:
    rig.linux.sh("dd if=/dev/urandom of=/dev/vda bs=1M seek=32 count=2 conv=fsync 2>&1")
    rig.linux.sh(f"host blkdiscard -z -o {32 * MIB} -l {MIB} /dev/vda")
    with rig.disk.open("rb") as image:
        image.seek(32 * MIB)
        assert image.read(MIB) == bytes(MIB)
        assert image.read(MIB) != bytes(MIB)


def test_two_thousand_reads_take_two_thousand_requests(linux: Linux) -> None:
    before = int(linux.sh("awk '{print $1}' /sys/block/vda/stat"))
    linux.sh("dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct 2>&1")
    assert int(linux.sh("awk '{print $1}' /sys/block/vda/stat")) - before == 2000


# net


def in_namespace(rig: Rig, *command: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", rig.namespace, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pings_are_answered_both_ways(rig: Rig) -> None:
    assert " 0% packet loss" in rig.linux.sh(f"ping -c 5 -i 0.2 {HOST}")
    assert " 0% packet loss" in in_namespace(rig, "ping", "-c", "5", "-i", "0.2", GUEST)


def test_the_mtu_is_the_hosts_and_frames_of_it_get_through(rig: Rig) -> None:
    assert rig.linux.sh("cat /sys/class/net/eth0/mtu") == str(MTU)
    size = str(MTU - 28)
    in_namespace(rig, "ping", "-c", "3", "-i", "0.2", "-M", "do", "-s", size, GUEST)


def test_checksums_and_segmentation_are_left_to_the_host(linux: Linux) -> None:
    features = linux.sh("host ethtool -k eth0")
    for name in ("tx-checksum-ip-generic", "tx-tcp-segmentation", "generic-receive-offload"):
        assert re.search(rf"{name}: on", features), features


@pytest.fixture
def listener(rig: Rig) -> socket.socket:
    """A socket in the host's namespace that the guest can connect to."""
    sockets: list[socket.socket] = []

    def make() -> None:
        # A thread's own namespace: the rest of the process stays where it is.
        fd = os.open(f"/run/netns/{rig.namespace}", os.O_RDONLY)
        libc_setns(fd)
        os.close(fd)
        listening = socket.create_server((HOST, 0))
        listening.settimeout(COMMAND_SECONDS)
        sockets.append(listening)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return sockets[0]


def libc_setns(fd: int) -> None:
    import ctypes

    assert ctypes.CDLL(None, use_errno=True).setns(fd, 0) == 0


def test_bulk_from_the_guest_arrives_whole(rig: Rig, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    rig.linux.start(
        f"head -c {PIECE} /dev/urandom >/tmp/piece; md5sum </tmp/piece; "
        f"for i in $(seq {rig.bulk // PIECE}); do cat /tmp/piece; done | "
        f"host socat -u -b 262144 - TCP:{HOST}:{port}; rm /tmp/piece"
    )
    data = bytearray()
    with listener, listener.accept()[0] as connection:
        connection.settimeout(COMMAND_SECONDS)
        while received := connection.recv(1 << 20):
            data += received
    digest = rig.linux.finish(seconds=2 * COMMAND_SECONDS).split()[0]
    assert len(data) == rig.bulk
    pieces = {hashlib.md5(data[at : at + PIECE]).hexdigest() for at in range(0, rig.bulk, PIECE)}
    assert pieces == {digest}


def test_bulk_to_the_guest_arrives_whole(rig: Rig, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    rig.linux.start(f"host socat -u -b 262144 TCP:{HOST}:{port} - | md5sum")
    data = os.urandom(rig.bulk)
    with listener, listener.accept()[0] as connection:
        connection.settimeout(2 * COMMAND_SECONDS)
        connection.sendall(data)
    digest = hashlib.md5(data)
    assert rig.linux.finish(seconds=2 * COMMAND_SECONDS).split()[0] == digest.hexdigest()


def test_the_link_goes_down_and_up_with_the_taps(rig: Rig) -> None:
    def carrier() -> str:
        return rig.linux.sh("cat /sys/class/net/eth0/carrier")

    assert carrier() == "1"
    in_namespace(rig, "ip", "link", "set", "tap0", "down")
    wait_until(lambda: carrier() == "0")
    in_namespace(rig, "ip", "link", "set", "tap0", "up")
    wait_until(lambda: carrier() == "1")
    assert " 0% packet loss" in rig.linux.sh(f"ping -c 2 -i 0.2 -W 20 {HOST}")


# console


def test_the_console_has_the_terminals_size_and_follows_it(rig: Rig) -> None:
    assert rig.linux.sh("stty size </dev/hvc0") == "24 80"
    rig.console.resize(Size(132, 50))
    wait_until(lambda: rig.linux.sh("stty size </dev/hvc0") == "50 132")


def test_a_user_logs_in_at_the_consoles_prompt(rig: Rig) -> None:
    # Without a log to write to, login tells the system's console, which is the agent's.
    rig.linux.sh("syslogd -O /tmp/messages; until [ -S /dev/log ]; do sleep 0.1; done")
    rig.linux.sh("setsid getty 0 hvc0 vt100 >/dev/null 2>&1 &")
    rig.console.wait_for(rb"login: ")
    rig.console.type(b"root\n")
    rig.console.wait_for(rb"[#$] ")
    rig.console.type(b"echo sum $((40 + 2))\n")
    rig.console.wait_for(rb"sum 42\r\n")
    rig.console.type(b"exit\n")


def test_a_named_port_carries_bytes_both_ways(rig: Rig) -> None:
    name = rig.linux.sh("cd /sys/class/virtio-ports; grep -l . */name | cut -d/ -f1")
    assert rig.linux.sh(f"cat /sys/class/virtio-ports/{name}/name") == PORT
    # A port can be open once.
    rig.linux.start(
        f"exec 3<>/dev/{name}; head -c 100000 <&3 >/tmp/got; cat /tmp/got >&3; sha256sum </tmp/got"
    )
    data = os.urandom(100_000)
    rig.port.type(data)
    assert rig.linux.finish().split()[0] == hashlib.sha256(data).hexdigest()
    with rig.port.written:
        rig.port.written.wait_for(lambda: len(rig.port.output) >= len(data), COMMAND_SECONDS)
        assert bytes(rig.port.output) == data
        rig.port.output.clear()


# balloon


def test_the_balloon_takes_memory_and_gives_it_back(rig: Rig) -> None:
    def free() -> int:
        return int(rig.linux.sh("awk '/MemFree/ {print $2}' /proc/meminfo")) << 10

    before, allocated = free(), rig.linux.memory.allocated
    with rig.balloon.lock:
        rig.balloon.set_target(rig.linux.memory.size - 64 * MIB)
    wait_until(lambda: before - free() > 56 * MIB)
    assert rig.linux.memory.allocated < allocated + 8 * MIB
    with rig.balloon.lock:
        rig.balloon.set_target(0)
    wait_until(lambda: before - free() < 16 * MIB)


def test_the_balloon_reports_statistics(rig: Rig) -> None:
    total = int(rig.linux.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) << 10
    wait_until(lambda: total in rig.balloon.statistics.values())


def test_free_pages_are_given_back_to_the_host(rig: Rig) -> None:
    rig.linux.sh("dd if=/dev/zero of=/dev/shm/large bs=1M count=64 2>/dev/null")
    used = rig.linux.memory.allocated
    rig.linux.sh("rm /dev/shm/large")
    # Every two seconds Linux reports a part of what is free.
    wait_until(lambda: rig.linux.memory.allocated < used - 16 * MIB)


# rng


def test_entropy_comes_from_the_device_and_looks_random(linux: Linux) -> None:
    assert linux.sh("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
    data = bytes.fromhex(linux.sh("head -c 2500 /dev/hwrng | xxd -p | tr -d '\\n'"))
    assert len(data) == 2500
    # FIPS 140-2's monobit test, and its test of long runs.
    bits = "".join(f"{byte:08b}" for byte in data)
    assert 9_725 < bits.count("1") < 10_275
    assert max(len(run) for run in re.findall(r"0+|1+", bits)) < 26


def test_rngtest_finds_nothing_to_say_against_it(linux: Linux) -> None:
    # Of blocks of good entropy 1 in 1,250 fails one of the tests.
    told = linux.sh("host rngtest -c 40 </dev/hwrng 2>&1", check=False)
    successes = re.search(r"FIPS 140-2 successes: (\d+)", told)
    assert successes, told
    assert int(successes[1]) >= 38


# All of them


@pytest.mark.parametrize(
    ("driver", "works"),
    [
        ("virtio_blk", "dd if=/dev/vda of=/dev/null bs=4k count=10 iflag=direct 2>&1"),
        ("virtio_rng", "head -c 16 /dev/hwrng | wc -c"),
        ("virtio_balloon", "true"),
        # It looks for units in its own time.
        (
            "virtio_scsi",
            "for i in $(seq 300); do ls -d /sys/class/scsi_disk/*:0:0:0 2>/dev/null && exit; "
            "sleep 0.1; done; exit 1",
        ),
        (
            "virtio_net",
            f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up; ping -c 2 -W 20 {HOST}",
        ),
        ("virtio_console", "stty size </dev/hvc0"),
        # No program listens: it is told so.
        (
            "vmw_vsock_virtio_transport",
            "host socat - VSOCK-CONNECT:2:9 2>&1 | grep 'Connection reset by peer'",
        ),
    ],
)
def test_a_driver_gives_its_devices_up_and_finds_them_again(
    linux: Linux, driver: str, works: str
) -> None:
    folder = f"/sys/bus/virtio/drivers/{driver}"
    names = linux.sh(f"cd {folder}; echo virtio*").split()
    devices = [slot for slot in linux.machine.slots if _driver_of(slot.name) == driver]
    if driver == "virtio_blk":
        # The third disk is in use.
        names, devices = names[:2], devices[:2]
    for name in names:
        linux.sh(f"echo {name} >{folder}/unbind")
    # They were reset, and the bus has seen them since.
    assert {slot.transport.lifecycle.status for slot in devices} == {DeviceStatus.ACKNOWLEDGE}
    for name in names:
        linux.sh(f"echo {name} >{folder}/bind")
    assert all(slot.transport.lifecycle.status & DeviceStatus.DRIVER_OK for slot in devices)
    linux.sh(works)


def _driver_of(name: str) -> str:
    kind = name.rstrip("0123456789")
    return "vmw_vsock_virtio_transport" if kind == "vsock" else f"virtio_{kind}"
