import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.guest.support import (
    ISOLATED,
    VIRTIOPY,
    assert_one_sentence,
    needs_isolation,
    needs_kvm,
    run_guest,
    virtiopy,
    with_command,
)
from tests.namespace import Namespace, needs_taps
from tests.ping import ping

pytestmark = [needs_kvm, needs_taps]

ROOT = Path(__file__).parents[2]

HOST, GUEST = "192.0.2.1", "192.0.2.2"
MAC = "02:00:00:00:00:02"
PORT, STOP_PORT = 5001, 9

#: asm-generic/socket.h; the socket module does not have it.
SO_RCVBUFFORCE = 33

#: A datagram's words after its number are the number times this, as in guest_drivers/net/stream.c.
PATTERN_STEP = 0x9E3779B97F4A7C15
WORDS = 8
SIZE = 8 * WORDS
SEQUENCE_END = (1 << 64) - 1

#: Who may work the rings here.
MODES = ["trapped", "ioeventfd", "native"]


def datagram(number: int) -> bytes:
    """What the guest's drivers send and expect."""
    word = number * PATTERN_STEP & SEQUENCE_END
    return struct.pack("<QQ", number, word) + struct.pack("<Q", word) * (WORDS - 2)


how_many = pytest.mark.parametrize(
    "frames",
    [5_000, pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])],
)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


@dataclass
class Run:
    """A guest in the background."""

    process: subprocess.Popen[str]
    report_path: Path
    lines: list[str] = field(default_factory=list)

    def wait_for(self, line: str) -> None:
        """Read the guest's output up to this line."""
        assert self.process.stdout is not None
        for read in self.process.stdout:
            self.lines.append(read)
            if read.startswith(line):
                return
        raise AssertionError(f"no {line!r} in {self.lines}")

    def is_done(self, within: float) -> bool:
        """Say whether the process ends within so many seconds."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> dict[str, Any]:
        """Wait for the guest's end; returns the report."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        assert self.process.wait() == 0, self.lines
        report: dict[str, Any] = json.loads(self.report_path.read_text())
        return report


def counters(report: dict[str, Any]) -> dict[str, int]:
    """The network device's counters."""
    facts = report["devices"][0]["facts"]
    return {name: value for name, value in facts.items() if isinstance(value, int)}


@contextmanager
def running(tmp_path: Path, namespace: Namespace, append: str, options: str = "") -> Iterator[Run]:
    """Run the net guest on a tap in the namespace, and stop it whatever happens."""
    path = tmp_path / "report.json"
    net = f"tap=t0,create=on,netns={namespace.name},address={HOST}/24,mac={MAC}{options}"
    command = [*VIRTIOPY, "run", "--guest", "net", "--net", net, "--json", str(path)]
    command += ["--append", append, "--timeout", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield Run(process, path)
        finally:
            if process.poll() is None:
                process.terminate()


def stop(namespace: Namespace) -> None:
    """Tell a serving guest to end."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"stop", (GUEST, STOP_PORT))

    namespace.inside(send)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *((mode, options) for mode in MODES[:2] for options in ("", ",queues=4", ",mtu=9000")),
        # A pair's thread does not know of the others: each takes seconds.
        ("native", ",queues=4"),
    ],
)
def test_the_net_guest_passes(
    tmp_path: Path, namespace: Namespace, mode: str, options: str
) -> None:
    net = f"tap=t0,create=on,netns={namespace.name},address={HOST}/24,mode={mode}{options}"

    outcome = run_guest(tmp_path, "net", "--net", net)

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 100
    assert namespace.links() == set()


@pytest.mark.parametrize("mode", MODES)
def test_the_guest_answers_a_thousand_pings(
    tmp_path: Path, namespace: Namespace, mode: str
) -> None:
    with running(tmp_path, namespace, "net.mode=serve", f",mode={mode}") as run:
        run.wait_for("# ready")
        ping(namespace, GUEST, count=1000, interval=0.002)
        stop(namespace)
        report = run.finish()

    kicks = [r for r in report["exits"]["userspace"] if r["register"] == "QueueNotify"]
    assert bool(kicks) == (mode == "trapped")


def open_receiver(namespace: Namespace) -> socket.socket:
    """Open the socket that the guest sends to: a socket stays in its namespace."""

    def work() -> socket.socket:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        receiver.bind(("", PORT))
        receiver.setblocking(False)
        return receiver

    return namespace.inside(work)


def take_datagrams(receiver: socket.socket, frames: int) -> tuple[bytearray, int]:
    """Take what has come: how often each datagram did, and how many were wrong."""
    seen = bytearray(frames)
    corrupted = 0
    while True:
        try:
            data = receiver.recv(2048)
        except BlockingIOError:
            return seen, corrupted
        number = int.from_bytes(data[:8], "little")
        if number >= frames or data != datagram(number):
            corrupted += 1
        else:
            seen[number] += 1


@how_many
def test_every_frame_that_the_guest_sends_is_accounted_for(
    tmp_path: Path, namespace: Namespace, frames: int
) -> None:
    append = f"net.mode=send net.frames={frames} net.size={SIZE}"
    # The guest sends as soon as it is ready, so the socket is there before.
    with open_receiver(namespace) as receiver, running(tmp_path, namespace, append) as run:
        run.wait_for("# sent")
        seen, corrupted = take_datagrams(receiver, frames)
        lost_by_host = dropped_by_host(namespace)
        report = run.finish()

    counts = counters(report)
    dropped = sum(count for name, count in counts.items() if name.startswith("tx_dropped"))
    missing = seen.count(0)
    print(  # noqa: T201 - figures for who asks with -s
        f"{frames} sent: {missing} missing, {dropped} dropped by the device, {lost_by_host} "
        f"by the host; {corrupted} corrupted"
    )
    assert corrupted == 0
    assert max(seen) == 1
    # And an ARP request, or a few where the host is slow.
    assert frames < counts["tx_frames"] + dropped < frames + 20
    assert missing == dropped + lost_by_host


def dropped_by_host(namespace: Namespace) -> int:
    """Datagrams that the host dropped on their way from the tap to the socket."""

    def read() -> int:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith("Udp:"))
        return int(dict(zip(names, values, strict=True))["InErrors"])

    return namespace.inside(read)


@how_many
@pytest.mark.parametrize("queue", ["short", "long"])
def test_every_frame_that_the_host_sends_is_accounted_for(
    tmp_path: Path, namespace: Namespace, frames: int, queue: str
) -> None:
    """As fast as the host can: what the tap's queue has no room for is lost there."""

    def work() -> int:
        ends = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((GUEST, PORT))
            for number in range(frames):
                sender.send(datagram(number))
            # The end may be dropped as well; and the tap goes when the guest is done.
            while not run.is_done(within=0.2):
                with suppress(OSError):
                    sender.send(SEQUENCE_END.to_bytes(8, "little"))
                    ends += 1
        return ends

    with running(tmp_path, namespace, "net.mode=receive") as run:
        run.wait_for("# ready")
        if queue == "long":
            namespace.ip("link", "set", "t0", "txqueuelen", str(2 * frames))
        namespace.ip("neigh", "replace", GUEST, "lladdr", MAC, "dev", "t0")
        ends = namespace.inside(work)
        report = run.finish()

    counts = counters(report)
    match = re.search(
        r"# received (\d+) missing \d+ repeated (\d+) corrupted (\d+)", "".join(run.lines)
    )
    assert match is not None, run.lines
    received, repeated, corrupted = map(int, match.groups())
    dropped = sum(count for name, count in counts.items() if name.startswith("rx_dropped"))
    print(  # noqa: T201 - figures for who asks with -s
        f"{frames} sent: {received} received, {dropped} dropped: {counts}"
    )
    assert (repeated, corrupted) == (0, 0)
    assert frames <= received + dropped <= frames + ends
    if queue == "long":
        assert received == frames


# Bad input


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("create=on", ["tap"]),
        ("t0", ["tap=..."]),
        ("tap=t0,create=yes", ["create=yes", "on, off"]),
        ("tap=a-name-too-long-for-an-interface", ["interface name"]),
        ("tap=virtiopy-none", ["create=on", "ip tuntap add"]),
        ("tap=t0,create=on,netns=virtiopy-none", ["ip netns add"]),
        ("tap=virtiopy-x,create=on,bridge=virtiopy-none", ["type bridge"]),
        ("tap=t0,create=on,mac=01:00:5e:00:00:01", ["MAC"]),
        ("tap=t0,create=on,mac=zebra", ["MAC"]),
        ("tap=t0,create=on,mtu=20", ["mtu=20"]),
        ("tap=t0,create=on,mtu=x", ["mtu=x"]),
        ("tap=t0,create=on,address=192.0.2.1", ["prefix length"]),
        ("tap=t0,create=on,queues=0", ["queues=0"]),
        ("tap=virtiopy-x,create=on,pcap=/nowhere/x.pcapng", ["pcap", "/nowhere"]),
        ("tap=lo", ["no tap"]),
    ],
)
def test_a_net_that_cannot_be_had_is_refused_in_one_sentence(net: str, words: list[str]) -> None:
    assert_one_sentence(virtiopy("run", "--net", net), *words)


def test_two_devices_on_one_tap_are_refused(namespace: Namespace) -> None:
    net = f"tap=t0,netns={namespace.name}"
    created = virtiopy("run", "--net", f"{net},create=on", "--net", net)
    assert_one_sentence(created, "in use", "a tap of its own")
    assert namespace.links() == set()

    namespace.ip("tuntap", "add", "t0", "mode", "tap", "multi_queue")
    assert_one_sentence(virtiopy("run", "--net", net, "--net", net), "in use")


def test_a_record_for_several_devices_is_refused(tmp_path: Path) -> None:
    nets = ("--net", "tap=t0,create=on", "--net", "tap=t1,create=on")
    assert_one_sentence(virtiopy("run", *nets, "--pcap", tmp_path / "x"), "--pcap", "pcap=FILE")
    assert_one_sentence(virtiopy("run", "--pcap", tmp_path / "x"), "--pcap")


needs_no_vhost = pytest.mark.skipif(
    Path("/dev/vhost-net").exists(), reason="this host has /dev/vhost-net"
)


@needs_no_vhost
@pytest.mark.parametrize("option", ["vhost=on", "mode=vhost"])
def test_vhost_where_there_is_none_is_refused_with_the_remedy(
    namespace: Namespace, option: str
) -> None:
    net = f"tap=t0,create=on,netns={namespace.name},{option}"
    assert_one_sentence(
        virtiopy("run", "--net", net), "/dev/vhost-net does not exist", "modprobe vhost_net"
    )
    assert namespace.links() == set()


@needs_no_vhost
def test_vhost_auto_falls_back_and_says_so_in_one_line(
    tmp_path: Path, namespace: Namespace
) -> None:
    net = f"tap=t0,create=on,netns={namespace.name},vhost=auto"
    outcome = run_guest(tmp_path, "probe", "--net", net)
    assert outcome.status == 0
    (line,) = outcome.errors.splitlines()
    assert line.startswith("virtiopy: net0 is in ioeventfd mode: /dev/vhost-net does not exist")
    assert outcome.report["devices"][0]["mode"] == "ioeventfd"


@pytest.mark.parametrize("mode", MODES)
def test_the_report_has_the_mode(tmp_path: Path, namespace: Namespace, mode: str) -> None:
    net = f"tap=t0,create=on,netns={namespace.name},mode={mode}"
    outcome = run_guest(tmp_path, "probe", "--net", net)
    assert outcome.report["devices"][0]["mode"] == mode
    assert re.search(rf"net0 +│ mode +│ +{mode} ", outcome.output)


def test_a_record_and_vhost_are_refused_together(tmp_path: Path, namespace: Namespace) -> None:
    net = f"tap=t0,create=on,netns={namespace.name}"
    pcap = tmp_path / "net.pcap"
    refused = virtiopy("run", "--net", f"{net},vhost=on", "--pcap", pcap)
    assert_one_sentence(refused, "cannot be recorded here", "tcpdump -i t0")
    assert namespace.links() == set()

    outcome = run_guest(tmp_path, "probe", "--net", f"{net},vhost=auto,pcap={pcap}")
    assert outcome.status == 0
    assert outcome.report["devices"][0]["mode"] == "ioeventfd"


def test_a_tap_with_longer_frames_than_the_device_is_refused_for_vhost(
    namespace: Namespace,
) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap")
    namespace.ip("link", "set", "t0", "mtu", "9000")
    net = f"tap=t0,netns={namespace.name},mtu=1500,vhost=on"
    assert_one_sentence(virtiopy("run", "--net", net), "MTU of 9000", "link set t0 mtu 1500")


@pytest.mark.parametrize("mode", MODES)
def test_a_tap_that_vanishes_is_a_link_that_goes_down(
    tmp_path: Path, namespace: Namespace, mode: str
) -> None:
    with running(tmp_path, namespace, "net.mode=serve", f",mode={mode}") as run:
        run.wait_for("# ready")
        namespace.ip("link", "del", "t0")
        run.wait_for("# link down")
        # The guest goes on, and what runs it too.
        assert not run.is_done(within=0.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_run_no_tap_is_left(
    tmp_path: Path, namespace: Namespace, number: int
) -> None:
    with running(tmp_path, namespace, "net.mode=serve") as run:
        run.wait_for("# ready")
        assert namespace.links() == {"t0"}
        os.kill(run.process.pid, number)
        run.process.wait()
    assert namespace.links() == set()


def test_a_link_that_goes_down_and_up_is_seen_by_the_guest(
    tmp_path: Path, namespace: Namespace
) -> None:
    with running(tmp_path, namespace, "net.mode=serve") as run:
        run.wait_for("# ready")
        namespace.ip("link", "set", "t0", "down")
        run.wait_for("# link down")
        namespace.ip("link", "set", "t0", "up")
        run.wait_for("# link up")
        run.wait_for("# announced, ack 0")
        stop(namespace)
        run.finish()


@needs_isolation
@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is missing")
def test_the_commands_of_the_docs_work(tmp_path: Path) -> None:
    """In namespaces for interfaces and mounts, so that nothing of them is left."""
    text = (ROOT / "docs" / "net.md").read_text()
    commands = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    assert len(commands) > 10
    hide = "mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns"
    script = "\n".join(["set -e", hide, f"cd {tmp_path}", *commands])
    done = subprocess.run(
        [*ISOLATED, "sh", "-c", script],
        env=with_command(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "3 packets transmitted, 3 received" in done.stdout
    assert "who-has 192.0.2.1 tell 192.0.2.2" in done.stdout
