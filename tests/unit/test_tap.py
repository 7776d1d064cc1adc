"""Taps, real ones, in a network namespace of the tests' own."""

import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.namespace import Namespace, needs_taps
from tests.openfiles import open_files
from tests.patience import PATIENCE
from tests.unit.test_tap_refusals import refused
from virtiopy._native import lib
from virtiopy.devices.net import Net
from virtiopy.errors import ConfigError
from virtiopy.eventloop import EventLoop
from virtiopy.host.tap import Tap
from virtiopy.memory import GuestMemory
from virtiopy.transport.driver import MmioDriver
from virtiopy.transport.interrupts import LevelInterrupt
from virtiopy.transport.mmio import MmioTransport
from virtiopy.transport.registers import Register
from virtiopy.vhost.kernel.net import check_tap
from virtiopy.virtqueue.driver import Allocator, Piece

pytestmark = needs_taps

NOBODY = 65534

#: linux/if_tun.h
IFF_TUN = 1
HEADER = bytes(12)
MAC = bytes.fromhex("020000000001")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


# Making


def test_a_tap_is_made_with_its_settings_and_gone_when_closed(namespace: Namespace) -> None:
    address = ipaddress.ip_interface("192.0.2.1/24")
    with Tap(namespace.config(create=True, address=address, mtu=1400)) as tap:
        shown = namespace.ip("addr", "show", "t0")
        assert "192.0.2.1/24" in shown
        assert "mtu 1400" in shown
        assert tap.mtu == 1400
        assert tap.is_up()
    assert namespace.links() == set()


def test_an_ipv6_address_can_be_given(namespace: Namespace) -> None:
    namespace.allow_ipv6()
    address = ipaddress.ip_interface("2001:db8::1/64")
    with Tap(namespace.config(create=True, address=address)):
        assert "2001:db8::1/64" in namespace.ip("addr", "show", "t0")


def test_a_tap_becomes_a_port_of_a_bridge(namespace: Namespace) -> None:
    namespace.ip("link", "add", "br0", "type", "bridge")
    with Tap(namespace.config(create=True, bridge="br0")):
        assert "master br0" in namespace.ip("link", "show", "t0")
    assert namespace.links() == {"br0"}


def test_a_persistent_tap_stays_for_its_owner(namespace: Namespace) -> None:
    Tap(namespace.config(create=True, persistent=True, owner=NOBODY)).close()
    shown = namespace.ip("-d", "link", "show", "t0")
    assert "persist on" in shown
    assert "user nobody" in shown
    with Tap(namespace.config()):
        pass
    assert namespace.links() == {"t0"}


def test_a_tap_goes_when_its_process_is_killed(namespace: Namespace) -> None:
    script = (
        "import sys, time; from virtiopy.host.tap import Tap; "
        "from virtiopy.host.tapconfig import TapConfig, parse_address; "
        "t = Tap(TapConfig('t0', create=True, netns=sys.argv[1], "
        "address=parse_address('192.0.2.1/24'))); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, namespace.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert namespace.links() == {"t0"}
        process.kill()
        process.wait()
    assert namespace.links() == set()


def test_a_tap_that_could_not_be_configured_is_gone(namespace: Namespace) -> None:
    assert "no bridge br9" in refused(namespace.config(create=True, bridge="br9"))
    assert namespace.links() == set()


def test_the_thread_that_opens_a_tap_stays_in_its_namespace(namespace: Namespace) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    files = open_files()
    threads = threading.active_count()
    for _ in range(3):
        Tap(namespace.config(create=True)).close()
    assert os.readlink("/proc/thread-self/ns/net") == before
    assert open_files() == files
    assert threading.active_count() == threads


# Using one that is there


def test_a_tap_that_is_there_is_used_and_left_as_it_was(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap")
    namespace.ip("link", "set", "t0", "mtu", "1300")
    with Tap(namespace.config()) as tap:
        assert tap.mtu == 1300
        assert not tap.is_up()
    assert namespace.links() == {"t0"}


def test_a_multi_queue_tap_can_be_used_with_one_queue(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap", "multi_queue")
    with Tap(namespace.config()) as tap:
        assert tap.pairs == 1


def test_a_tap_has_as_many_queues_as_asked(namespace: Namespace) -> None:
    with Tap(namespace.config(create=True, queues=3)) as tap:
        assert len({tap.fileno(pair) for pair in range(3)}) == 3
        tap.set_pairs(1)
        assert "numqueues 1" in namespace.ip("-d", "link", "show", "t0")
        tap.set_pairs(3)
        assert "numqueues 3" in namespace.ip("-d", "link", "show", "t0")


# Offloads


@pytest.mark.parametrize(
    "offloads",
    [
        (False, False, False, False),
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, True),
    ],
)
def test_the_tap_takes_every_set_of_offloads(
    namespace: Namespace, offloads: tuple[bool, bool, bool, bool]
) -> None:
    checksum, tso4, tso6, ecn = offloads
    with Tap(namespace.config(create=True)) as tap:
        tap.set_offloads(checksum=checksum, tso4=tso4, tso6=tso6, ecn=ecn)
        tap.set_offloads(checksum=False, tso4=False, tso6=False, ecn=False)


def test_the_host_takes_a_frame_to_be_segmented_and_refuses_a_lie(namespace: Namespace) -> None:
    """The header is read little-endian and is 12 bytes long, or this would not work."""
    ethernet = b"\xff" * 6 + MAC + b"\x08\0"
    ip4 = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + 20 + 3000, 0, 0, 64, 6, 0, b"\xc0\0\2\2", b"\xc0\0\2\1"
    )
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 1000, 0, 0)
    frame = ethernet + ip4 + tcp + bytes(3000)
    with Tap(namespace.config(create=True)) as tap:
        tap.write(0, [struct.pack("<BBHHHHH", 1, 1, 54, 1448, 34, 16, 0), frame])
        with pytest.raises(OSError, match="Invalid argument"):
            tap.write(0, [struct.pack("<BBHHHHH", 1, 1, 54, 1448, 9000, 16, 0), frame])


# State


def wait_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(10_000))


def test_the_link_follows_the_taps_state(namespace: Namespace) -> None:
    with Tap(namespace.config(create=True)) as tap:
        tap.is_up()
        for state, is_up in (("down", False), ("up", True)):
            namespace.ip("link", "set", "t0", state)
            assert wait_readable(tap.state_fileno())
            assert tap.is_up() == is_up


def test_a_tap_that_is_renamed_is_still_followed(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap")
    with Tap(namespace.config()) as tap:
        namespace.ip("link", "set", "t0", "name", "t1")
        namespace.ip("link", "set", "t1", "up")
        assert tap.is_up()


def test_a_tap_that_is_deleted_is_down_and_can_be_closed(namespace: Namespace) -> None:
    with Tap(namespace.config(create=True)) as tap:
        namespace.ip("link", "del", "t0")
        assert wait_readable(tap.state_fileno())
        assert not tap.is_up()
        tap.set_pairs(1)
        tap.set_offloads(checksum=False, tso4=False, tso6=False, ecn=False)
        assert tap.dropped() == 0
        with pytest.raises(OSError, match="bad state") as caught:
            tap.write(0, [HEADER, bytes(60)])
        assert caught.value.errno == errno.EBADFD


def test_frames_that_nobody_reads_are_counted_as_dropped(namespace: Namespace) -> None:
    address = ipaddress.ip_interface("192.0.2.1/24")
    with Tap(namespace.config(create=True, address=address)) as tap:
        namespace.ip("link", "set", "t0", "txqueuelen", "10")
        namespace.ip("neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "t0")

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(100):
                    sender.sendto(b"x" * 100, ("192.0.2.2", 5000))

        before = tap.dropped()
        namespace.inside(send)
        buffer = memoryview(bytearray(2048))
        frames = 0
        while True:
            try:
                tap.read(0, [buffer])
            except BlockingIOError:
                break
            frames += buffer[12 + 14 + 9] == socket.IPPROTO_UDP
        assert frames >= 1
        assert frames + tap.dropped() - before >= 100


# A device on a tap


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as made:
        yield made
        assert made.failure is None


def test_a_frame_goes_through_device_and_tap_and_comes_back(
    namespace: Namespace, loop: EventLoop
) -> None:
    """An ARP request of the driver's is answered by the host, with nothing but the real loop."""
    address = ipaddress.ip_interface("192.0.2.1/24")
    device = Net(Tap(namespace.config(create=True, address=address)), mac=MAC)
    interrupted = threading.Event()
    with GuestMemory.allocate(1 << 20) as memory:
        transport = MmioTransport(device, memory, LevelInterrupt(lambda level: interrupted.set()))
        device.attach(transport.lifecycle, loop, may_block=False)
        loop.start()
        driver = MmioDriver(transport, memory, Allocator(0x10000, 1 << 20))
        driver.start([])
        buffers = {}
        for _ in range(32):
            piece = Piece(driver.allocator.take(1600), 1600, writable=True)
            buffers[driver.queues[0].add([piece])] = piece
        driver.kick(0)
        request = (
            b"\xff" * 6 + MAC + b"\x08\x06\0\x01\x08\0\6\4\0\1"
            + MAC + bytes([192, 0, 2, 2]) + bytes(6) + bytes([192, 0, 2, 1])
        )  # fmt: skip
        sent = driver.allocator.take(100)
        memory.write(sent, HEADER + request)
        driver.queues[1].add([Piece(sent, len(HEADER + request))])
        driver.kick(1)
        answers: list[bytes] = []
        while not answers:
            assert interrupted.wait(PATIENCE)
            interrupted.clear()
            for used in driver.queues[0].take_all_used():
                frame = memory.read(buffers[used.head].address, used.length)[12:]
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                    answers.append(frame)
        assert answers[0][28:32] == bytes([192, 0, 2, 1])

        namespace.ip("link", "del", "t0")
        while transport.read(Register.Config + 6, 1) != b"\0":
            assert interrupted.wait(PATIENCE)
            interrupted.clear()
        loop.stop()
        device.reset()
        device.close()


# vhost works on the file of a queue


def test_a_queue_is_lent_while_its_frames_are_no_longer_than_the_devices(
    namespace: Namespace,
) -> None:
    with Tap(namespace.config(create=True, mtu=1400, queues=2)) as tap:
        assert [tap.worker_file(pair, 1400) for pair in range(2)] == [tap.fileno(0), tap.fileno(1)]
        namespace.ip("link", "set", "t0", "mtu", "1401")
        with pytest.raises(ConfigError, match=r"MTU of 1401.*link set t0 mtu 1400"):
            tap.worker_file(0, 1400)
        namespace.ip("link", "del", "t0")
        with pytest.raises(ConfigError, match="no more"):
            tap.worker_file(0, 1400)


def test_vhost_takes_the_taps_that_are_opened_here(namespace: Namespace) -> None:
    with Tap(namespace.config(create=True)) as tap:
        check_tap(tap.fileno(0))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (lib.IFF_TAP | lib.IFF_NO_PI, "no tap whose frames have a struct virtio_net_hdr"),
        (IFF_TUN | lib.IFF_VNET_HDR, "no tap whose frames have a struct virtio_net_hdr"),
        (lib.IFF_TAP | lib.IFF_VNET_HDR, "headers of 10 bytes, not 12"),
    ],
)
def test_vhost_takes_no_interface_without_headers(
    namespace: Namespace, flags: int, words: str
) -> None:
    """Opened by somebody else: the headers have 10 bytes unless TUNSETVNETHDRSZ says otherwise."""

    def open_tun() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, lib.TUNSETIFF, struct.pack("16sH22x", b"t0", flags))
        return fd

    fd = namespace.inside(open_tun)
    with pytest.raises(ConfigError, match=words):
        check_tap(fd)
    os.close(fd)


def test_vhost_takes_no_file_that_is_no_tap() -> None:
    with open("/dev/null", "rb") as null, pytest.raises(ConfigError, match="no tap that vhost"):
        check_tap(null.fileno())
