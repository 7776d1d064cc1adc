"""Linux's own net driver, on a network device with two pairs that virtiopy serves to QEMU."""

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.vhost_user import serve
from tests.linux.guest import boot, chardev, finish, wait_for
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE

pytestmark = needs_taps

ADDRESS = "192.0.2.1"
PAIRS = 2

#: What is sent each way, bytes.
SIZES = [
    pytest.param(20 << 20, id="20M"),
    pytest.param(100 << 20, id="100M", marks=pytest.mark.nightly),
]


@dataclass(slots=True)
class Transfer:
    """What a boot has left: the SHA-256 of what was sent to the guest, and received from it."""

    share: Path
    size: int
    sent: str
    received: str
    links_left: set[str]

    def sums(self) -> dict[str, str]:
        """Return the SHA-256 of what the guest has `sent` and `received`."""
        lines = (self.share / "sums.txt").read_text().splitlines()
        return {name: digest for digest, name in (line.split() for line in lines)}

    def counter(self, name: str) -> int:
        """Return one of the driver's counters."""
        text = (self.share / "counters.txt").read_text()
        found = re.search(rf"^ *{name}: (\d+)$", text, re.MULTILINE)
        assert found is not None, text
        return int(found[1])


def listen(port: int) -> socket.socket:
    listener = socket.create_server((ADDRESS, port))
    listener.settimeout(PATIENCE)
    return listener


def send(listener: socket.socket, size: int) -> str:
    """Send random bytes to the one that connects, and return their SHA-256."""
    digest, piece = hashlib.sha256(), os.urandom(1 << 20)
    stream, _ = listener.accept()
    with stream:
        stream.settimeout(PATIENCE)
        for index in range(size >> 20):
            # Different each time, so that none can be taken for another.
            numbered = index.to_bytes(8, "little") + piece[8:]
            digest.update(numbered)
            stream.sendall(numbered)
    return digest.hexdigest()


def receive(listener: socket.socket) -> str:
    """Return the SHA-256 of all that one sends who connects."""
    digest = hashlib.sha256()
    stream, _ = listener.accept()
    with stream:
        stream.settimeout(PATIENCE)
        while data := stream.recv(1 << 20):
            digest.update(data)
    return digest.hexdigest()


@pytest.fixture(scope="module", params=SIZES)
def transfer(
    request: pytest.FixtureRequest, share: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Transfer]:
    size = request.param
    assert isinstance(size, int)
    path = tmp_path_factory.mktemp("net") / "net.sock"
    qemu = [*chardev("net", path), "-netdev", f"vhost-user,id=net,chardev=net,queues={PAIRS}"]
    # QEMU 7.2 without KVM crashes where a vhost-user net device has MSI-X vectors.
    qemu += ["-device", "virtio-net-pci,netdev=net,mq=on,vectors=0"]
    with Namespace() as namespace, ThreadPoolExecutor() as peers:
        options = f"tap=t0,create=on,netns={namespace.name},address={ADDRESS}/24,queues={PAIRS}"
        with (
            serve("net", options, path, share / "backend.log") as backend,
            namespace.inside(lambda: listen(5001)) as receiver,
            namespace.inside(lambda: listen(5002)) as sender,
        ):
            received, sent = peers.submit(receive, receiver), peers.submit(send, sender, size)
            with boot(
                request.config,
                share,
                "net.sh",
                ADDRESS,
                str(size),
                qemu=qemu,
                modules=("virtio_net",),
                tools={"ethtool": "ethtool", "ping": "iputils-ping"},
                cpus=PAIRS,
            ) as lab:
                digests = sent.result(), received.result()
                wait_for(share / "transferred", lab)
                backend.kill()
                backend.restart()
                (share / "restarted").touch()
                finish(lab)
        yield Transfer(share, size, *digests, links_left=namespace.links())


def test_every_ping_is_answered_while_pairs_come_and_go(transfer: Transfer) -> None:
    assert "40 received, 0% packet loss" in (transfer.share / "ping.txt").read_text()
    assert len((transfer.share / "changes.txt").read_text().splitlines()) > 1


def test_what_the_guest_sends_arrives(transfer: Transfer) -> None:
    assert transfer.received == transfer.sums()["sent"]


def test_what_the_guest_is_sent_arrives(transfer: Transfer) -> None:
    assert transfer.sent == transfer.sums()["received"]


def test_both_pairs_of_virtqueues_carried_frames(transfer: Transfer) -> None:
    # What CPU 0 sends, and most of what CPU 1 receives: its flow's acknowledgements, after which
    # the tap steers, are sent by CPU 0 for a part.
    assert transfer.counter("tx_queue_0_bytes") > transfer.size / 2
    assert transfer.counter("rx_queue_1_bytes") > transfer.size / 2
    assert transfer.counter("rx_queue_0_packets") > 100
    assert transfer.counter("tx_queue_1_packets") > 100


def test_the_device_works_on_when_its_backend_was_killed(transfer: Transfer) -> None:
    text = (transfer.share / "ping-again.txt").read_text()
    found = re.search(r"(\d+) received", text)
    assert found is not None
    assert int(found[1]) >= 5


def test_the_tap_is_taken_away_again(transfer: Transfer) -> None:
    assert transfer.links_left == set()
