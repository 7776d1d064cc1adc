"""What the judges of SCSI hosts', socket and file system devices' drivers make of their buffers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.unit.net.rig import MAC, FakeLink
from tests.unit.scsi_bench import Bench as ScsiBench
from tests.unit.scsi_bench import lun_field, request_header
from tests.unit.vsock_bench import CID, EVENT, RX, SEQPACKET, open_bench
from tests.unit.vsock_bench import Bench as VsockBench
from virtiopy.check.dress import Dressing
from virtiopy.check.fs import FsJudge
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.scsi import ScsiJudge
from virtiopy.check.variants import VARIANTS
from virtiopy.check.watch import DriverCheck
from virtiopy.check.withheld import Withholding
from virtiopy.devices.net import Net
from virtiopy.devices.net.features import NetFeature
from virtiopy.devices.vsock.features import Operation
from virtiopy.devices.vsock.packet import Header, pack_header
from virtiopy.memory import GuestMemory
from virtiopy.spec import feature_mask
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.virtqueue.queue import Chain, Descriptor, Virtqueue


def found(check: DriverCheck) -> set[str]:
    return {finding.statement.id for finding in check.finish().findings}


def kept(check: DriverCheck) -> set[str]:
    return {one.id for one, outcome, _ in check.finish().outcomes() if outcome == "kept"}


# SCSI hosts


@pytest.fixture
def scsi() -> Iterator[tuple[ScsiBench, DriverCheck]]:
    with GuestMemory.allocate(8 << 20) as memory:
        bench, check = ScsiBench(memory), DriverCheck()
        check.watch_frontend("scsi0", bench.transport.lifecycle)
        yield bench, check


def test_a_sound_driver_of_a_scsi_host_breaks_nothing(scsi: tuple[ScsiBench, DriverCheck]) -> None:
    bench, check = scsi
    bench.driver.start()
    bench.offer_event()
    assert bench.request(b"\0" * 6, tag=1).length
    assert found(check) == set()
    assert kept(check) >= {"5.6.6.1.2:1", "5.6.6.3.1:1"}


def test_buffers_past_the_entry_that_avail_event_names_take_no_kick(
    scsi: tuple[ScsiBench, DriverCheck],
) -> None:
    bench, check = scsi
    bench.driver.start()
    # The device does not take them: the entry that it asked to be told of is the first.
    bench.offer_event()
    for _ in range(7):
        bench.offer_event_quietly()
    bench.request(b"\0" * 6)
    assert found(check) == set()


def test_a_driver_that_fills_the_entry_that_avail_event_names_without_a_kick(
    scsi: tuple[ScsiBench, DriverCheck],
) -> None:
    bench, check = scsi
    bench.driver.start()
    for _ in range(8):
        bench.offer_event_quietly()
    bench.request(b"\0" * 6)
    assert found(check) == {"2.7.10.1:6"}


def test_a_driver_that_gives_no_buffers_for_events(scsi: tuple[ScsiBench, DriverCheck]) -> None:
    bench, check = scsi
    bench.driver.start()
    bench.request(b"\0" * 6)
    assert found(check) == {"5.6.6.3.1:1"}


@pytest.mark.parametrize("at", [16, 17, 18])
def test_a_request_with_attributes(scsi: tuple[ScsiBench, DriverCheck], at: int) -> None:
    bench, check = scsi
    bench.driver.start()
    bench.offer_event()
    header = bytearray(request_header(b"\0" * 6, lun_field(0, 0), 1))
    header[at] = 1
    bench.submit([bytes(header)], [108], 2)
    assert found(check) == {"5.6.6.1.2:1"}


@dataclass
class Known:
    """A device with this configuration space."""

    config: bytes = b""
    queues: Sequence[int] = (0, 1, 2)

    def config_space(self) -> bytes:
        return self.config


class Queue:
    """As much of a virtqueue as a judge looks at."""

    def __init__(self, index: int, size: int = 256) -> None:
        self.index, self.size = index, size


@dataclass
class Buffers:
    """A chain of a driver's."""

    token: int
    readable: list[memoryview]
    writable: list[memoryview]
    descriptors: Sequence[Descriptor] = ()


def chain(token: int, readable: bytes = b"", writable: int = 0) -> Buffers:
    return Buffers(
        token,
        [memoryview(readable)] if readable else [],
        [memoryview(bytearray(writable))] if writable else [],
    )


def request(judge: ScsiJudge | FsJudge, queue: int, *chains: Chain, size: int = 256) -> Virtqueue:
    there: Virtqueue = Queue(queue, size)  # type: ignore[assignment]
    judge.taken(there, chains)
    return there


SCSI_CONFIG = b"".join(n.to_bytes(4, "little") for n in (1, 126, 65535, 2, 16, 96, 32, 0, 0))
#: INQUIRY, whose CONTROL has LINK.
LINKED = request_header(bytes([0x12, 0, 0, 0, 36, 1]), lun_field(0, 0), 1)


def test_more_linked_commands_than_cmd_per_lun_and_than_the_queue_has_entries() -> None:
    account = DeviceJudge("scsi0")
    judge = ScsiJudge(account, Known(SCSI_CONFIG))
    other = request_header(bytes([0x12, 0, 0, 0, 36, 1]), lun_field(0, 1), 1)
    queue = request(judge, 2, chain(0, LINKED), chain(1, LINKED), chain(2, other))
    assert account.findings == []
    judge.used(queue, [(chain(0), 108)])
    request(judge, 2, chain(3, LINKED))
    assert account.findings == []
    request(judge, 2, chain(4, LINKED))
    assert [one.statement.id for one in account.findings] == ["5.6.4.1:2"]
    judge.finish(by_driver=True)
    request(judge, 2, chain(0, LINKED), chain(1, LINKED), size=1)
    assert [one.statement.id for one in account.findings] == ["5.6.4.1:2", "5.6.4.1:3"]


@pytest.mark.parametrize(
    ("buffer", "broken"),
    [
        (chain(0, writable=16), set[str]()),
        (chain(0, b"x", 16), {"5.6.6.3.1:2"}),
        (chain(0, writable=15), {"5.6.6.3.1:3", "5.6.6.3.1:4"}),
    ],
)
def test_buffers_for_events(buffer: Chain, broken: set[str]) -> None:
    account = DeviceJudge("scsi0")
    request(ScsiJudge(account, Known(SCSI_CONFIG)), 1, buffer)
    assert {one.statement.id for one in account.findings} == broken


# File system devices


@pytest.mark.parametrize(
    ("opcode", "queue", "broken"),
    [
        (2, 0, set[str]()),
        (36, 1, {"5.11.6.2.2:1"}),
        (42, 2, {"5.11.6.2.2:1"}),
        (15, 1, set[str]()),
        (15, 0, {"5.11.6.2.2:2"}),
    ],
)
def test_urgent_requests_and_others(opcode: int, queue: int, broken: set[str]) -> None:
    account = DeviceJudge("fs0")
    header = (40).to_bytes(4, "little") + opcode.to_bytes(4, "little") + bytes(32)
    request(FsJudge(account, Known()), queue, chain(0, header, 16))
    assert {one.statement.id for one in account.findings} == broken
    assert bool(account.exercised) is not bool(broken)


@pytest.mark.parametrize(("room", "broken"), [(64, []), (63, ["5.11.6.3.1:1"])])
def test_buffers_for_notifications(room: int, broken: list[str]) -> None:
    account = DeviceJudge("fs0")
    account.features = 1  # VIRTIO_FS_F_NOTIFICATION
    config = bytes(36) + (1).to_bytes(4, "little") + (64).to_bytes(4, "little")
    request(FsJudge(account, Known(config)), 1, chain(0, writable=room))
    assert [one.statement.id for one in account.findings] == broken


# Socket devices


@pytest.fixture
def vsock() -> Iterator[tuple[VsockBench, DriverCheck]]:
    with GuestMemory.allocate(32 << 20) as memory:
        bench, check = VsockBench(memory), DriverCheck()
        check.watch_frontend("vsock0", lifecycle_of(bench))
        yield bench, check


def lifecycle_of(bench: VsockBench) -> Lifecycle:
    lifecycle = bench.device.host
    assert isinstance(lifecycle, Lifecycle)
    return lifecycle


def start(bench: VsockBench, features: Sequence[int] | None = None) -> None:
    bench.driver.start(features)
    bench.supply(8)
    bench.driver.queues[EVENT].add([bench.piece(4)])
    bench.driver.kick(EVENT)


def test_a_sound_driver_of_a_socket_device_breaks_nothing(
    vsock: tuple[VsockBench, DriverCheck],
) -> None:
    bench, check = vsock
    start(bench)
    program = bench.connect()
    program.say(b"hello")
    [(_, data)] = bench.packets()
    bench.send(Operation.RW, b"answer", fwd_cnt=len(data))
    bench.send(Operation.SHUTDOWN, flags=3, fwd_cnt=len(data))
    assert found(check) == set()
    assert kept(check) >= {
        *("5.10.6.4.1:1", "5.10.6.3.1:1", "5.10.6.3.1:2", "5.10.6.7.1:1", "5.10.3.1:1"),
    }


def test_a_driver_that_gives_no_buffer_for_events(vsock: tuple[VsockBench, DriverCheck]) -> None:
    bench, check = vsock
    bench.driver.start()
    bench.supply(8)
    bench.connect()
    assert found(check) == {"5.10.6.7.1:1"}


def test_a_packet_from_another_context_id(vsock: tuple[VsockBench, DriverCheck]) -> None:
    bench, check = vsock
    start(bench)
    bench.send(Operation.REQUEST, src_cid=CID + 1)
    assert found(check) == {"5.10.6.4.1:1"}


def test_more_data_than_the_peer_has_room_for(vsock: tuple[VsockBench, DriverCheck]) -> None:
    bench, check = vsock
    start(bench)
    bench.connect()
    bench.send(Operation.RW, bytes(1 << 20))
    assert found(check) == {"5.10.6.3.1:1"}


def test_a_count_of_bytes_that_were_never_sent(vsock: tuple[VsockBench, DriverCheck]) -> None:
    bench, check = vsock
    start(bench)
    bench.connect()
    bench.send(Operation.CREDIT_UPDATE, fwd_cnt=1)
    assert found(check) == {"5.10.6.3.1:2"}


@pytest.mark.parametrize(("kind", "broken"), [(1, set[str]()), (SEQPACKET, {"5.10.3.1:2"})])
def test_a_socket_of_a_driver_without_features(
    vsock: tuple[VsockBench, DriverCheck], kind: int, broken: set[str]
) -> None:
    bench, check = vsock
    # VIRTIO_F_VERSION_1 alone: VIRTIO_VSOCK_F_NO_IMPLIED_STREAM is a SHOULD.
    start(bench, [32])
    bench.send(Operation.REQUEST, kind=kind)
    assert found(check) == broken | {"5.10.3.1:1"}


def dressed(bench: VsockBench, dressing: Dressing) -> DriverCheck:
    """Put a variant over a socket device that no driver has met yet, and watch its driver."""
    check = DriverCheck()
    check.watch_frontend("vsock0", lifecycle_of(bench))
    dressing.lifecycle = lifecycle_of(bench)
    inner = dressing.lifecycle.open_queue

    def opened(*arguments: object, **keywords: object) -> Virtqueue:
        return dressing.queue(inner(*arguments, **keywords))  # type: ignore[arg-type]

    dressing.lifecycle.open_queue = opened
    return check


def test_a_reset_of_an_unknown_type_takes_no_answer(
    vsock: tuple[VsockBench, DriverCheck],
) -> None:
    bench, check = vsock
    start(bench)
    # The device answers it with RST, of this type.
    bench.send(Operation.REQUEST, kind=3)
    assert bench.ops() == [Operation.RST]
    for _ in range(20):
        bench.send(Operation.CREDIT_UPDATE)
    assert found(check) == set()


@pytest.mark.parametrize("answers", [True, False])
def test_a_packet_of_a_type_that_no_driver_knows(answers: bool) -> None:
    with GuestMemory.allocate(32 << 20) as memory:
        bench, dressing = VsockBench(memory), VARIANTS["unknown-type"].dressing()
        check = dressed(bench, dressing)
        start(bench)
        bench.send(Operation.REQUEST)
        came = {header.op: header for header, _ in bench.packets()}
        assert came.keys() == {Operation.RESPONSE, Operation.REQUEST}
        assert dressing.has_acted
        strange = came[Operation.REQUEST]
        if answers:
            answer = Header(
                *(CID, strange.src_cid, strange.dst_port, strange.src_port, 0, strange.type),
                Operation.RST,
            )
            bench.transmit(bench.piece(pack_header(answer)))
        for _ in range(20):
            bench.send(Operation.CREDIT_UPDATE)
        assert found(check) == (set() if answers else {"5.10.6.4.1:2"})


def test_a_change_of_guest_cid_ends_connections_and_the_old_one_is_no_finding() -> None:
    # The bench has no event loop: the variant leaves the device alone then.
    with open_bench() as bench:
        dressing = VARIANTS["transport-reset"].dressing()
        check = dressed(bench, dressing)
        bench.driver.reset()
        start(bench)
        bench.connect()
        for _ in range(30):
            bench.send(Operation.CREDIT_UPDATE)
        assert not dressing.has_acted
        bench.device.change_cid(CID + 1)
        # The driver may have sent it before it was told.
        bench.send(Operation.CREDIT_UPDATE)
        assert "5.10.6.4.1:1" not in found(check)
        assert bench.driver.queues[RX] is not None


# Features that are withheld


@pytest.mark.parametrize(
    ("feature", "gone"),
    [
        ("VIRTIO_NET_F_MAC", {"VIRTIO_NET_F_MAC"}),
        (
            "VIRTIO_NET_F_CSUM",
            {f"VIRTIO_NET_F_{name}" for name in ("CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN")},
        ),
    ],
)
def test_a_feature_is_withheld_with_what_requires_it(feature: str, gone: set[str]) -> None:
    device, whole = Net(FakeLink(), mac=MAC), Net(FakeLink(), mac=MAC)
    dressing = Withholding(feature)
    dressing.device(device)
    features = device.offered(device.features)
    assert features == whole.offered(whole.features) & ~feature_mask(
        NetFeature[name] for name in gone
    )
    assert dressing.has_acted


def test_a_feature_of_another_device_type_is_left_alone() -> None:
    with GuestMemory.allocate(32 << 20) as memory:
        bench, dressing = VsockBench(memory), Withholding("VIRTIO_BLK_F_SIZE_MAX")
        dressing.device(bench.device)
        assert "VIRTIO_VSOCK_F_SEQPACKET" in lifecycle_of(bench).offered_names
        assert not dressing.has_acted
