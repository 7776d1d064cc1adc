"""The SCSI host device (5.6): addresses, requests, tasks, events, and the primary commands."""

from collections.abc import Iterator

import pytest

from tests.unit.blk.bench import FakeDisk
from tests.unit.scsi_bench import (
    BLOCK,
    CDROM,
    CONTROL,
    DISK,
    EVENTS,
    REQUESTS,
    STALE,
    Bench,
    function_request,
    illegal,
    lun_field,
    parse_reply,
    request_header,
)
from virtiopy.devices.scsi import Address, Scsi, ScsiDisk, ScsiFeature
from virtiopy.devices.scsi.command import Additional, ScsiStatus, SenseKey
from virtiopy.devices.scsi.control import Function
from virtiopy.devices.scsi.events import EVENTS_MISSED, EventType, ResetReason
from virtiopy.devices.scsi.requests import Response
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceId, Feature
from virtiopy.transport.registers import Register

TUR = "000000000000"
INQUIRY = "120000002400"
SENSE_SIZE_AT, CDB_SIZE_AT = 20, 24


@pytest.fixture
def bench() -> Iterator[Bench]:
    with GuestMemory.allocate(8 << 20) as memory:
        bench = Bench(memory)
        bench.start()
        yield bench


# Configuration (5.6.4)


def test_it_is_a_scsi_host_with_its_configuration(bench: Bench) -> None:
    assert bench.driver.read(Register.DeviceID) == DeviceId.SCSI_HOST
    assert bench.driver.offered_features() & 0xF == 0b110
    words = [bench.driver.read_config(at, 4) for at in range(0, 28, 4)]
    assert words == [1, 254, 0xFFFF, 128, 16, 96, 32]
    assert [bench.driver.read_config(at, 2) for at in (28, 30)] == [0, 255]
    assert bench.driver.read_config(32, 4) == 16383


def test_sense_and_cdb_sizes_are_the_drivers_until_a_reset(bench: Bench) -> None:
    bench.driver.write_config(SENSE_SIZE_AT, 4, 8)
    bench.driver.write_config(CDB_SIZE_AT, 4, 10)
    reply = bench.request("ff", sense_size=8, cdb_size=10)
    assert reply.status == ScsiStatus.CHECK_CONDITION
    # As much of the sense data as there is room for.
    assert len(reply.sense) == 8
    assert reply.sense[2] == SenseKey.ILLEGAL_REQUEST
    assert reply.length == 20
    # Now a CDB of 12 bytes is cut short.
    reply = bench.request("a000000000000000", room=8, sense_size=8, cdb_size=10)
    assert reply.sense[2] == SenseKey.ILLEGAL_REQUEST
    bench.driver.reset()
    assert [bench.driver.read_config(at, 4) for at in (SENSE_SIZE_AT, CDB_SIZE_AT)] == [96, 32]


@pytest.mark.parametrize(
    ("at", "value"), [(SENSE_SIZE_AT, 1 << 20), (CDB_SIZE_AT, 0), (CDB_SIZE_AT, 1 << 16), (0, 9)]
)
def test_no_other_value_and_no_other_field_is_taken(bench: Bench, at: int, value: int) -> None:
    before = bench.device.config_space()
    bench.driver.write_config(at, 4, value)
    assert bench.device.config_space() == before
    assert bench.request(TUR).good


# Addresses (5.6.6.1)


@pytest.mark.parametrize(
    "field", [bytes([1, 0, 0x40, 0]) + bytes(4), bytes([1, 0, 0, 0]) + bytes(4)]
)
def test_a_lun_below_256_has_two_addresses(bench: Bench, field: bytes) -> None:
    assert bench.request(TUR, lun=field).good


@pytest.mark.parametrize(
    "field",
    [
        bytes(8),
        bytes([0, 0, 0x40, 0]) + bytes(4),
        bytes([2, 0, 0x40, 0]) + bytes(4),
        bytes([1, 9, 0x40, 0]) + bytes(4),
        bytes([1, 0, 0x80, 0]) + bytes(4),
        bytes([1, 0, 0xC0, 0]) + bytes(4),
        bytes([1, 0, 0x01, 0]) + bytes(4),
        bytes([1, 0, 0x40, 0, 0, 0, 0, 1]),
        bytes.fromhex("c101000000000001"),
        bytes([1, 9, 0xC1, 1]) + bytes(4),
    ],
)
def test_a_target_that_is_not_there_is_a_bad_target(bench: Bench, field: bytes) -> None:
    reply = bench.request(INQUIRY, room=36, lun=field)
    assert (reply.response, reply.residual, reply.data) == (Response.BAD_TARGET, 36, b"")
    assert bench.function(Function.LOGICAL_UNIT_RESET, field) == Response.BAD_TARGET


def test_a_lun_that_is_not_there_says_so(bench: Bench) -> None:
    field = lun_field(0, 7)
    assert bench.request(TUR, lun=field).why == illegal(Additional.LOGICAL_UNIT_NOT_SUPPORTED)
    assert bench.request(INQUIRY, room=36, lun=field).data[0] == 0x7F
    sense = bench.request("030000001200", room=18, lun=field).data
    assert (sense[2], sense[12]) == (SenseKey.ILLEGAL_REQUEST, 0x25)
    assert bench.function(Function.LOGICAL_UNIT_RESET, field) == Response.INCORRECT_LUN


def report_luns(bench: Bench, lun: bytes, select: int = 0) -> list[bytes]:
    cdb = bytes([0xA0, 0, select]) + bytes(3) + (255).to_bytes(4) + bytes(2)
    data = bench.request(cdb, room=255, lun=lun).data
    assert int.from_bytes(data[:4]) == len(data) - 8
    return [data[at : at + 8] for at in range(8, len(data), 8)]


def test_luns_are_reported_by_every_unit_and_where_there_is_none() -> None:
    units = {Address(3, lun): ScsiDisk(FakeDisk()) for lun in (1, 300, 16383)}
    with GuestMemory.allocate(8 << 20) as memory:
        bench = Bench(memory, {**units, Address(0, 0): ScsiDisk(FakeDisk())})
        bench.start()
        expected = [
            bytes([0, 1]) + bytes(6),
            bytes([0x41, 0x2C]) + bytes(6),
            bytes([0x7F, 0xFF]) + bytes(6),
        ]
        for lun in (1, 300, 16383, 0):
            assert report_luns(bench, lun_field(3, lun)) == expected
        assert report_luns(bench, lun_field(3, 1), 1) == [bytes.fromhex("c101000000000000")]
        assert len(report_luns(bench, lun_field(3, 1), 2)) == 4
        # The well-known logical unit, of the target and of the whole device.
        assert report_luns(bench, bytes([1, 3, 0xC1, 1]) + bytes(4)) == expected
        assert report_luns(bench, bytes.fromhex("c101000000000000")) == [
            bytes([1, 0, 0, 0]) + bytes(4),
            *[bytes([1, 3]) + entry[:6] for entry in expected],
        ]


def test_a_list_of_luns_is_cut_where_it_was_asked_to_be(bench: Bench) -> None:
    whole = bench.request("a00000000000000000180000", room=24)
    # No allocation length is too short (SPC-4, 6.33).
    for size in (0, 4, 8, 15):
        reply = bench.request(f"a00000000000{size:08x}0000", room=24)
        assert reply.good
        assert (reply.data[:size], reply.residual) == (whole.data[:size], 24 - size)


def test_the_well_known_unit_says_what_it_is(bench: Bench) -> None:
    field = bytes.fromhex("c101000000000000")
    assert bench.request(INQUIRY, room=36, lun=field).data[0] == 0x1E
    assert bench.request(TUR, lun=field).why == (
        SenseKey.UNIT_ATTENTION,
        Additional.POWER_ON_OR_RESET,
    )
    assert bench.request(TUR, lun=field).good


@pytest.mark.parametrize(("target", "lun"), [(256, 0), (0, 16384), (-1, 0)])
def test_an_address_that_is_none_is_refused(target: int, lun: int) -> None:
    with pytest.raises(ValueError, match="no address"):
        Scsi({Address(target, lun): ScsiDisk(FakeDisk())})


# Requests (5.6.6.1)


def test_a_request_without_room_for_its_response_comes_back_empty(bench: Bench) -> None:
    header = request_header(bytes(6), lun_field(0, 0), 1)
    assert bench.submit([header], [11], REQUESTS) == (0, bytes([STALE]) * 11)
    assert bench.submit([header], [], REQUESTS) == (0, b"")
    assert bench.request(TUR).good


@pytest.mark.parametrize("room", [12, 107])
def test_a_request_without_room_for_sense_data_is_a_failure(bench: Bench, room: int) -> None:
    header = request_header(bytes(6), lun_field(0, 0), 1)
    length, written = bench.submit([header], [room], REQUESTS)
    assert length == room
    assert parse_reply(length, written, 96).response == Response.FAILURE


@pytest.mark.parametrize("size", [0, 8, 18, 19, 50])
def test_a_request_that_is_cut_short_is_a_failure(bench: Bench, size: int) -> None:
    header = request_header(bytes(6), lun_field(0, 0), 1)[:size]
    length, written = bench.submit([header] if header else [], [108], REQUESTS)
    assert length == 108
    assert parse_reply(length, written, 96).response == Response.FAILURE


def test_layout_is_no_matter_of_descriptors(bench: Bench) -> None:
    header = request_header(bytes.fromhex(INQUIRY), lun_field(0, 0), 1)
    pieces = [header[:3], header[3:25], header[25:]]
    length, written = bench.submit(pieces, [5, 100, 10, 29], REQUESTS)
    reply = parse_reply(length, written, 96)
    assert reply.good
    assert len(reply.data) == 36


@pytest.mark.parametrize("opcode", [0x01, 0x5E, 0x5F, 0x7F, 0xC1, 0xFF, 0x1E])
def test_a_command_that_is_none_is_refused(bench: Bench, opcode: int) -> None:
    # Persistent reservations (5Eh, 5Fh) are among them.
    reply = bench.request(bytes([opcode]))
    assert reply.why == illegal(Additional.INVALID_COMMAND_OPERATION_CODE)
    assert reply.sense[15:18] == bytes([0xC0, 0, 0])
    assert (len(reply.sense), reply.length) == (18, 108)


@pytest.mark.parametrize(
    ("cdb", "pointer"),
    [
        ("000000000004", 5),
        ("120000002404", 5),
        ("28e00000000000000100", 1),
        ("2800000000001f000100", 6),
        ("9e11", 1),
        ("a31f", 1),
        ("120080002400", 2),
        ("1201b7002400", 2),
    ],
    ids=["aca", "aca-inquiry", "protect", "group", "action", "a3", "page", "vpd"],
)
def test_a_field_that_is_wrong_is_pointed_at(bench: Bench, cdb: str, pointer: int) -> None:
    reply = bench.request(cdb, room=BLOCK)
    assert reply.why == illegal(Additional.INVALID_FIELD_IN_CDB)
    assert reply.sense[15:18] == bytes([0xC0, 0, pointer])
    assert reply.residual == BLOCK


# The primary commands


def test_inquiry_says_what_a_unit_is(bench: Bench) -> None:
    data = bench.request("12000000ff00", room=255).data
    assert len(data) == data[4] + 5 == 74
    assert data[:4] == bytes([0x00, 0x00, 0x06, 0x12])
    assert data[8:36] == b"VIRTIOPYDISK            1   "
    data = bench.request(INQUIRY, room=36, lun=lun_field(0, 1)).data
    assert data[:2] == bytes([0x05, 0x80])


def test_an_answer_is_cut_where_it_was_asked_to_be(bench: Bench) -> None:
    reply = bench.request("120000000500", room=100)
    assert (len(reply.data), reply.residual) == (5, 95)
    assert bench.request("120000000000").good


def test_a_units_news_is_told_once_and_not_by_inquiry(bench: Bench) -> None:
    bench.driver.reset()
    bench.driver.start()
    assert bench.request(INQUIRY, room=36).good
    assert bench.request("a0000000000000000010", room=16).good
    new = (SenseKey.UNIT_ATTENTION, Additional.POWER_ON_OR_RESET)
    assert bench.request(TUR).why == new
    assert bench.request(TUR).good
    # Or as the data of REQUEST SENSE, in either format.
    sense = bench.request("030000001200", room=18, lun=lun_field(0, 1)).data
    assert (sense[0], sense[2], sense[12]) == (0x70, SenseKey.UNIT_ATTENTION, 0x29)
    sense = bench.request("030100001200", room=18, lun=lun_field(0, 1)).data
    assert sense[:4] == bytes([0x72, SenseKey.NO_SENSE, 0, 0])


def opcodes(bench: Bench, options: int, opcode: int = 0, action: int = 0) -> bytes:
    cdb = bytes([0xA3, 0x0C, options, opcode]) + action.to_bytes(2) + (4096).to_bytes(4)
    return bench.request(cdb + bytes(2), room=4096).data


def test_supported_commands_are_listed_and_each_is_served(bench: Bench) -> None:
    data = opcodes(bench, 0)
    assert int.from_bytes(data[:4]) == len(data) - 4
    entries = [data[at : at + 8] for at in range(4, len(data), 8)]
    codes = {entry[0] for entry in entries}
    assert {0x00, 0x12, 0x28, 0x2A, 0x42, 0x89, 0x93, 0x9E, 0xA0, 0xA3} <= codes
    assert not codes & {0x5E, 0x5F}
    for entry in entries:
        has_action = entry[5] & 1
        one = opcodes(bench, 2 if has_action else 1, entry[0], int.from_bytes(entry[2:4]))
        assert one[1] & 7 == 3
        assert int.from_bytes(one[2:4]) == int.from_bytes(entry[6:8]) == len(one) - 4
        assert one[4] == entry[0]


def test_a_command_that_is_none_is_told_to_be_none(bench: Bench) -> None:
    assert opcodes(bench, 1, 0x5E) == bytes([0, 1, 0, 0])
    assert opcodes(bench, 2, 0x9E, 0x11) == bytes([0, 1, 0, 0])
    assert opcodes(bench, 3, 0x28, 1) == bytes([0, 1, 0, 0])
    # With timeouts, of which it has none to tell.
    one = opcodes(bench, 0x81, 0x28)
    assert (one[1], one[14:]) == (0x83, bytes([0, 10]) + bytes(10))


@pytest.mark.parametrize(("options", "opcode"), [(1, 0x9E), (2, 0x28), (4, 0x28)])
def test_a_command_cannot_be_asked_for_in_the_wrong_form(
    bench: Bench, options: int, opcode: int
) -> None:
    reply = bench.request(bytes([0xA3, 0x0C, options, opcode]) + bytes(8))
    assert reply.why == illegal(Additional.INVALID_FIELD_IN_CDB)


# The control queue (5.6.6.2)


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (Function.ABORT_TASK, Response.OK),
        (Function.ABORT_TASK_SET, Response.OK),
        (Function.CLEAR_ACA, Response.FUNCTION_REJECTED),
        (Function.CLEAR_TASK_SET, Response.OK),
        (Function.I_T_NEXUS_RESET, Response.OK),
        (Function.LOGICAL_UNIT_RESET, Response.OK),
        (Function.QUERY_TASK, Response.OK),
        (Function.QUERY_TASK_SET, Response.OK),
        (8, Response.FUNCTION_REJECTED),
    ],
)
def test_functions_for_a_task_that_is_none_are_answered(
    bench: Bench, function: int, response: int
) -> None:
    assert bench.function(function, tag=12345) == response


def test_a_reset_of_a_unit_is_its_news_and_no_others(bench: Bench) -> None:
    bench.function(Function.LOGICAL_UNIT_RESET)
    assert bench.request(TUR).why == (SenseKey.UNIT_ATTENTION, Additional.POWER_ON_OR_RESET)
    assert bench.request(TUR, lun=lun_field(0, 1)).good


def test_a_reset_of_a_nexus_is_the_news_of_its_target(bench: Bench) -> None:
    # The LUN is ignored.
    assert bench.function(Function.I_T_NEXUS_RESET, lun_field(0, 99)) == Response.OK
    for lun in (0, 1):
        reply = bench.request(TUR, lun=lun_field(0, lun))
        assert reply.why == (SenseKey.UNIT_ATTENTION, Additional.I_T_NEXUS_LOSS)


@pytest.mark.parametrize("kind", [1, 2])
def test_no_asynchronous_notification_can_be_had(bench: Bench, kind: int) -> None:
    request = kind.to_bytes(4, "little") + lun_field(0, 1) + (16).to_bytes(4, "little")
    assert bench.control(request, 5) == bytes(5)
    wrong = kind.to_bytes(4, "little") + lun_field(9, 1) + (16).to_bytes(4, "little")
    assert bench.control(wrong, 5) == bytes(4) + bytes([Response.BAD_TARGET])
    # Without room for all of the answer there is none.
    assert bench.control(request, 4) == b""


@pytest.mark.parametrize(
    "request_",
    [b"", bytes(3), bytes(23), bytes([9, 0, 0, 0]) + bytes(20), bytes([1, 0, 0, 0]) + bytes(11)],
    ids=["empty", "type", "function", "unknown", "notification"],
)
def test_what_is_no_request_of_the_control_queue_is_a_failure(
    bench: Bench, request_: bytes
) -> None:
    length, written = bench.submit([request_] if request_ else [], [1], CONTROL)
    assert (length, written) == (1, bytes([Response.FAILURE]))


def test_a_function_without_room_for_its_response_comes_back_empty(bench: Bench) -> None:
    assert bench.submit([function_request(0, lun_field(0, 0), 1)], [], CONTROL) == (0, b"")


# Events (5.6.6.3)


def test_plugging_a_unit_in_and_out_is_told(bench: Bench) -> None:
    bench.offer_event()
    bench.offer_event()
    disk, new = FakeDisk(), Address(2, 300)
    bench.device.add_unit(new, ScsiDisk(disk))
    assert bench.request(INQUIRY, room=36, lun=lun_field(2, 300)).good
    assert bench.events() == [
        (EventType.TRANSPORT_RESET, bytes([1, 2, 0x41, 0x2C]) + bytes(4), ResetReason.RESCAN)
    ]
    bench.device.remove_unit(new)
    assert disk.closed
    assert bench.events() == [
        (EventType.TRANSPORT_RESET, bytes([1, 2, 0x41, 0x2C]) + bytes(4), ResetReason.REMOVED)
    ]
    assert bench.request(TUR, lun=lun_field(2, 300)).response == Response.BAD_TARGET


def test_the_targets_other_units_tell_of_it_too(bench: Bench) -> None:
    bench.device.add_unit(Address(0, 5), ScsiDisk(FakeDisk()))
    news = (SenseKey.UNIT_ATTENTION, Additional.REPORTED_LUNS_CHANGED)
    assert bench.request(TUR).why == news
    bench.device.remove_unit(Address(0, 5))
    assert bench.request(TUR).why == news
    assert bench.request(TUR, lun=lun_field(0, 5)).why == illegal(
        Additional.LOGICAL_UNIT_NOT_SUPPORTED
    )


def test_a_unit_in_anothers_place_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="a logical unit at 0:0"):
        bench.device.add_unit(DISK, ScsiDisk(FakeDisk()))
    with pytest.raises(KeyError):
        bench.device.remove_unit(Address(9, 9))


def test_a_new_capacity_is_an_event_and_the_units_news(bench: Bench) -> None:
    bench.offer_event()
    bench.disk.content += bytes(BLOCK)
    bench.device.capacity_changed(DISK)
    assert bench.events() == [(EventType.PARAM_CHANGE, bytes([1]) + bytes(7), 0x092A)]
    news = (SenseKey.UNIT_ATTENTION, Additional.CAPACITY_DATA_CHANGED)
    assert bench.request("25000000000000000000", room=8).why == news
    assert bench.request("25000000000000000000", room=8).data[:4] == (64).to_bytes(4)
    # The same size again is none.
    bench.offer_event()
    bench.device.capacity_changed(DISK)
    assert bench.events() == []
    assert bench.request(TUR).good


def test_no_parameter_change_is_reported_of_a_cd_rom(bench: Bench) -> None:
    bench.offer_event()
    bench.disc.content += bytes(2048)
    bench.device.capacity_changed(CDROM)
    assert bench.events() == []


@pytest.mark.parametrize("features", [[], [ScsiFeature.VIRTIO_SCSI_F_CHANGE]])
def test_no_hotplug_event_comes_without_the_feature(bench: Bench, features: list[int]) -> None:
    bench.start(features)
    bench.offer_event()
    bench.device.add_unit(Address(1, 0), ScsiDisk(FakeDisk()))
    bench.device.remove_unit(Address(1, 0))
    assert bench.events() == []


def test_no_parameter_change_comes_without_the_feature(bench: Bench) -> None:
    bench.start([ScsiFeature.VIRTIO_SCSI_F_HOTPLUG])
    bench.offer_event()
    bench.disk.content += bytes(BLOCK)
    bench.device.capacity_changed(DISK)
    assert bench.events() == []


def test_lost_events_are_told_with_the_next_buffer(bench: Bench) -> None:
    bench.device.add_unit(Address(1, 0), ScsiDisk(FakeDisk()))
    bench.offer_event()
    assert bench.events() == [(EVENTS_MISSED | EventType.NO_EVENT, bytes(8), 0)]
    bench.offer_event()
    assert bench.events() == []


def test_a_kick_is_asked_for_where_an_event_was_lost(bench: Bench) -> None:
    bench.start([ScsiFeature.VIRTIO_SCSI_F_HOTPLUG, Feature.VIRTIO_F_EVENT_IDX])
    for lun in range(3):
        bench.offer_event_quietly()
        bench.device.add_unit(Address(1, lun), ScsiDisk(FakeDisk()))
    assert len(bench.events()) == 3
    bench.driver.queues[EVENTS].should_kick()
    bench.device.add_unit(Address(1, 3), ScsiDisk(FakeDisk()))
    bench.offer_event_quietly()
    assert bench.driver.queues[EVENTS].should_kick()
    bench.driver.kick(EVENTS)
    assert bench.events() == [(EVENTS_MISSED | EventType.NO_EVENT, bytes(8), 0)]


def test_lost_events_are_told_with_the_next_event(bench: Bench) -> None:
    bench.device.add_unit(Address(1, 0), ScsiDisk(FakeDisk()))
    # The buffer is there, but its kick has not come yet.
    bench.offer_event_quietly()
    bench.device.add_unit(Address(1, 1), ScsiDisk(FakeDisk()))
    [(event, lun, _)] = bench.events()
    assert event == EVENTS_MISSED | EventType.TRANSPORT_RESET
    assert lun[:4] == bytes([1, 1, 0, 1])
    assert bench.device.facts()["events_lost"] == 1


def test_a_buffer_too_short_for_an_event_comes_back_without_one(bench: Bench) -> None:
    bench.offer_event(8)
    bench.offer_event()
    bench.device.add_unit(Address(1, 0), ScsiDisk(FakeDisk()))
    short, event = bench.events()
    assert short == (EventType.NO_EVENT, bytes(8), 0)
    assert event[0] == EventType.TRANSPORT_RESET


def test_events_wait_for_no_driver(bench: Bench) -> None:
    bench.driver.reset()
    bench.device.add_unit(Address(1, 0), ScsiDisk(FakeDisk()))
    bench.start()
    bench.offer_event()
    assert bench.events() == []


def test_all_its_disks_are_closed_with_it(bench: Bench) -> None:
    bench.device.close()
    assert bench.disk.closed
    assert bench.disc.closed
