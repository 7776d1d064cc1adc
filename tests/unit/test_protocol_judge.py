"""What a proxy makes of messages: which statement of the vhost-user protocol a side has broken."""

import os
from collections.abc import Iterator

import pytest

from virtiopy.check.passing.check import PassingCheck
from virtiopy.spec import DeviceId
from virtiopy.vhost.user.memory import FrontendMemory
from virtiopy.vhost.user.messages import (
    NO_FLAGS,
    ConfigAccess,
    Flag,
    MemoryRegion,
    Message,
    Request,
    RingAddresses,
    RingState,
    memory_table,
    ring_file,
    u64,
)
from virtiopy.vhost.user.statements import statements

REGION = MemoryRegion(0, 1 << 20, 0x7000_0000, 0)
#: VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
OFFERED = 1 << 32 | 1 << 30
#: MQ, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS.
PROTOCOL = 1 | 1 << 3 | 1 << 9 | 1 << 15


class Session:
    """A session of which the test says both sides; until `set_up` nothing was said."""

    def __init__(self, memory: FrontendMemory) -> None:
        self._memory = memory
        self.check = PassingCheck()
        self.check.began(memory)

    def ask(self, request: Request, payload: bytes = b"", files: int = 0, flags: int = 0) -> None:
        message = Message(request, payload, Flag(flags) if flags else NO_FLAGS, [-1] * files)
        self.check.message(message, from_frontend=True)

    def answer(self, request: Request, payload: bytes = b"", files: int = 0) -> None:
        self.check.message(Message(request, payload, Flag.REPLY, [-1] * files), from_frontend=False)

    def greet(self, *, accepted: int = PROTOCOL) -> None:
        self.ask(Request.GET_FEATURES)
        self.answer(Request.GET_FEATURES, u64(OFFERED))
        self.ask(Request.SET_OWNER)
        self.ask(Request.GET_PROTOCOL_FEATURES)
        self.answer(Request.GET_PROTOCOL_FEATURES, u64(PROTOCOL))
        self.ask(Request.SET_PROTOCOL_FEATURES, u64(accepted))
        self.ask(Request.SET_FEATURES, u64(OFFERED))

    def set_up(self) -> None:
        self.greet()
        self.ask(Request.SET_MEM_TABLE, memory_table([REGION]), 1)
        fd = os.memfd_create("test")
        os.ftruncate(fd, REGION.size)
        self._memory.replace([(REGION, fd)])
        self.ask(Request.SET_VRING_NUM, RingState(0, 16).encode())
        self.ask(Request.SET_VRING_BASE, RingState(0, 0).encode())
        self.addresses(REGION.user_address)
        self.ask(Request.SET_VRING_CALL, ring_file(0, has_fd=True), 1)
        self.ask(Request.SET_VRING_KICK, ring_file(0, has_fd=True), 1)
        self.ask(Request.SET_VRING_ENABLE, RingState(0, 1).encode())
        self.check.called(0)

    def addresses(self, start: int) -> None:
        payload = RingAddresses(0, 0, start, start + 0x2000, start + 0x1000, 0).encode()
        self.ask(Request.SET_VRING_ADDR, payload)

    def found(self) -> set[str]:
        self.check.ended()
        known = statements()
        findings = self.check.finish().findings
        return {one.statement.id for one in findings if one.statement.id in known}


@pytest.fixture
def session() -> Iterator[Session]:
    with FrontendMemory() as memory:
        yield Session(memory)


def test_a_right_session_breaks_nothing(session: Session) -> None:
    session.set_up()
    session.ask(Request.GET_QUEUE_NUM)
    session.answer(Request.GET_QUEUE_NUM, u64(1))
    session.ask(Request.SET_FEATURES, u64(OFFERED), flags=Flag.NEED_REPLY)
    session.answer(Request.SET_FEATURES, u64(0))
    config = ConfigAccess(0, bytes(8)).encode()
    session.ask(Request.GET_CONFIG, config)
    session.answer(Request.GET_CONFIG, config)
    session.ask(Request.GET_CONFIG, config)
    session.answer(Request.GET_CONFIG)  # an error
    session.ask(Request.GET_VRING_BASE, RingState(0, 0).encode())
    session.answer(Request.GET_VRING_BASE, RingState(0, 7).encode())
    session.ask(Request.SET_VRING_BASE, RingState(0, 7).encode())
    assert session.found() == set()


FRONTENDS: dict[str, tuple[Request, bytes, int, int]] = {
    # Statement: the message, its payload, files and flags.
    "header:4": (Request.GET_FEATURES, b"", 0, Flag.REPLY),
    "header:5": (Request.SET_FEATURES, b"short", 0, 0),
    "communication:8": (Request.SET_FEATURES, u64(OFFERED), 1, 0),
    "communication:9": (Request.GET_STATUS, b"", 0, 0),
    "RESET_DEVICE:3": (Request.RESET_DEVICE, b"", 0, 0),
    "SET_FEATURES:1": (Request.SET_FEATURES, u64(OFFERED | 1 << 5), 0, 0),
    "SET_PROTOCOL_FEATURES:3": (Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL | 1 << 16), 0, 0),
    "in-band:2": (Request.SET_PROTOCOL_FEATURES, u64(1 << 14), 0, 0),
    "SET_OWNER:1": (Request.SET_OWNER, b"", 0, 0),
    "RESET_OWNER:2": (Request.RESET_OWNER, b"", 0, 0),
    "regions:2": (Request.SET_MEM_TABLE, memory_table([]), 0, 0),
    "SET_MEM_TABLE:2": (Request.SET_MEM_TABLE, memory_table([REGION]), 2, 0),
    "ADD_MEM_REG:2": (Request.ADD_MEM_REG, REGION.encode(), 0, 0),
    "REM_MEM_REG:4": (Request.REM_MEM_REG, REGION.encode(), 1, 0),
    "REM_MEM_REG:5": (Request.REM_MEM_REG, MemoryRegion(9, 9, 9, 9).encode(), 0, 0),
    "SET_VRING_NUM:2": (Request.SET_VRING_NUM, RingState(1, 12).encode(), 0, 0),
    "SET_VRING_BASE:2": (Request.SET_VRING_BASE, RingState(0, 3).encode(), 0, 0),
    "SET_VRING_KICK:2": (Request.SET_VRING_CALL, ring_file(0, has_fd=True), 0, 0),
    "SET_VRING_ADDR:2": (Request.SET_VRING_KICK, ring_file(2, has_fd=True), 1, 0),
    "SET_VRING_ENABLE:3": (Request.SET_VRING_ENABLE, RingState(0, 2).encode(), 0, 0),
    "SET_BACKEND_REQ_FD:2": (Request.SET_BACKEND_REQ_FD, b"", 1, 0),
    "SEND_RARP:1": (Request.SEND_RARP, u64(1), 0, 0),
    "NET_SET_MTU:2": (Request.NET_SET_MTU, u64(1500), 0, 0),
}

#: What cannot be broken without another.
BESIDES = {
    "in-band:2": {"SET_PROTOCOL_FEATURES:3"},
    "RESET_DEVICE:3": {"communication:9"},
    "SET_BACKEND_REQ_FD:2": {"communication:9"},
    "SEND_RARP:1": {"communication:9"},
    "NET_SET_MTU:2": {"communication:9"},
    "SET_MEM_TABLE:2": {"regions:2"},
    "SET_VRING_ADDR:2": {"SET_VRING_NUM:2"},
}


@pytest.mark.parametrize("statement", FRONTENDS)
def test_a_message_that_breaks_a_statement_to_frontends_is_found(
    session: Session, statement: str
) -> None:
    session.set_up()
    session.ask(*FRONTENDS[statement])
    assert session.found() == {statement} | BESIDES.get(statement, set())


def test_need_reply_is_found_where_it_was_not_negotiated(session: Session) -> None:
    session.greet(accepted=1)
    session.ask(Request.SET_FEATURES, u64(OFFERED), flags=Flag.NEED_REPLY)
    assert session.found() == {"REPLY_ACK:4"}


def test_a_ring_outside_of_the_memory_is_found(session: Session) -> None:
    session.set_up()
    session.addresses(REGION.user_address + REGION.size - 0x2000)
    assert session.found() == {"memory-access:3"}


def test_rings_that_are_enabled_without_the_feature_are_found(session: Session) -> None:
    session.greet()
    session.ask(Request.SET_FEATURES, u64(1 << 32))
    session.ask(Request.SET_VRING_ENABLE, RingState(0, 1).encode())
    assert session.found() == {"SET_VRING_ENABLE:2"}


BACKENDS: dict[str, tuple[Request, bytes, Request, bytes]] = {
    # Statement: what is asked, and the answer.
    "header:3": (Request.GET_QUEUE_NUM, b"", Request.GET_FEATURES, u64(1)),
    "GET_FEATURES:1": (Request.GET_FEATURES, b"", Request.GET_FEATURES, u64(OFFERED | 1)),
    "GET_QUEUE_NUM:1": (Request.GET_QUEUE_NUM, b"", Request.GET_QUEUE_NUM, u64(0)),
    "GET_CONFIG:1": (
        Request.GET_CONFIG,
        ConfigAccess(0, bytes(8)).encode(),
        Request.GET_CONFIG,
        ConfigAccess(0, bytes(4)).encode(),
    ),
    "GET_VRING_BASE:1": (
        Request.GET_VRING_BASE,
        RingState(0, 0).encode(),
        Request.GET_VRING_BASE,
        RingState(1, 0).encode(),
    ),
    "multiple-queues:1": (
        Request.GET_PROTOCOL_FEATURES,
        b"",
        Request.GET_PROTOCOL_FEATURES,
        u64(PROTOCOL - 1),
    ),
}


@pytest.mark.parametrize("statement", BACKENDS)
def test_an_answer_that_breaks_a_statement_to_backends_is_found(
    session: Session, statement: str
) -> None:
    session.set_up()
    asked, payload, answered, answer = BACKENDS[statement]
    session.ask(asked, payload)
    session.answer(answered, answer)
    assert session.found() == {statement}


def test_an_answer_to_nothing_is_found(session: Session) -> None:
    session.set_up()
    session.answer(Request.SET_FEATURES, u64(0))
    assert session.found() == {"communication:4"}


def test_an_acknowledgement_that_is_no_number_is_found(session: Session) -> None:
    session.set_up()
    session.ask(Request.SET_FEATURES, u64(OFFERED), flags=Flag.NEED_REPLY)
    session.answer(Request.SET_FEATURES)
    assert session.found() == {"REPLY_ACK:2"}


def test_a_reply_without_its_flag_is_found(session: Session) -> None:
    session.set_up()
    session.ask(Request.GET_QUEUE_NUM)
    session.check.message(Message(Request.GET_QUEUE_NUM, u64(1)), from_frontend=False)
    assert session.found() == {"header:1"}


def test_a_notification_while_all_rings_are_stopped_is_found(session: Session) -> None:
    session.set_up()
    session.ask(Request.GET_VRING_BASE, RingState(0, 0).encode())
    session.answer(Request.GET_VRING_BASE, RingState(0, 0).encode())
    session.check.called(0)
    assert session.found() == {"suspended:2"}


def test_what_a_frontend_does_not_offer_its_driver_is_not_asked_of_the_driver(
    session: Session,
) -> None:
    """VIRTIO_NET_F_MTU and _MAC: QEMU, for one, has them offered only where it is told to."""
    check = session.check = PassingCheck(DeviceId.NETWORK)
    with FrontendMemory() as memory:
        check.began(memory)
        session.ask(Request.GET_FEATURES)
        session.answer(Request.GET_FEATURES, u64(OFFERED | 1 << 3 | 1 << 5))
        session.ask(Request.SET_FEATURES, u64(OFFERED))
        check.ended()
    assert [str(one) for one in check.finish().findings] == []
