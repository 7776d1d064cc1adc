"""Messages and their replies (Header, Communication, VHOST_USER_PROTOCOL_F_REPLY_ACK)."""

import os
import socket

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.problems import BrokenError, NotApplicableError
from virtiopy.conformance.sessions.memory import SessionMemory
from virtiopy.conformance.sessions.raw import RawFrontend
from virtiopy.spec import feature_mask, has_feature
from virtiopy.vhost.user.messages import (
    VHOST_USER_F_PROTOCOL_FEATURES,
    MemoryRegion,
    ProtocolFeature,
    Request,
    RingState,
    memory_table,
    ring_file,
    to_u64,
    u64,
)

ACK = ProtocolFeature.REPLY_ACK


def need(raw: RawFrontend, *features: ProtocolFeature) -> int:
    """Begin a session with these protocol features alone; returns the device's features."""
    offered = raw.ask(Request.GET_FEATURES)
    taken = raw.begin(feature_mask(features))
    if missing := [feature.name for feature in features if not has_feature(taken, feature)]:
        raise NotApplicableError(f"the backend does not offer {' and '.join(missing)}")
    return offered


def table(memory: SessionMemory) -> tuple[bytes, list[int]]:
    """Return the payload of SET_MEM_TABLE, and the files that go with it."""
    regions = [
        MemoryRegion(region.guest_address, region.size, region.host_address, region.offset)
        for region in memory.regions
    ]
    return memory_table(regions), [region.fd for region in memory.regions]


@pytest.mark.clause("communication:1", "header:1", "header:2", "header:3")
def test_what_has_a_reply_gets_it(raw: RawFrontend) -> None:
    offered = raw.ask(Request.GET_FEATURES)
    if has_feature(offered, VHOST_USER_F_PROTOCOL_FEATURES):
        raw.ask(Request.GET_PROTOCOL_FEATURES)


@pytest.mark.clause("GET_FEATURES:1")
def test_the_features_are_the_same_whenever_they_are_asked_for(raw: RawFrontend) -> None:
    first = raw.ask(Request.GET_FEATURES)
    same(raw.ask(Request.GET_FEATURES), first, "the second reply to GET_FEATURES")
    raw.begin()
    same(raw.ask(Request.GET_FEATURES), first, "the reply to GET_FEATURES after SET_OWNER")


@pytest.mark.clause("GET_PROTOCOL_FEATURES:1", "SET_PROTOCOL_FEATURES:1")
def test_protocol_features_are_negotiated_before_features(raw: RawFrontend) -> None:
    if not has_feature(raw.ask(Request.GET_FEATURES), VHOST_USER_F_PROTOCOL_FEATURES):
        raise NotApplicableError("the backend has no protocol features")
    offered = raw.ask(Request.GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES:1")
    raw.tell(Request.SET_PROTOCOL_FEATURES, u64(offered & feature_mask([ACK])))
    raw.ask(Request.GET_FEATURES, "SET_PROTOCOL_FEATURES:1")


@pytest.mark.clause("communication:4")
def test_what_asks_for_no_reply_gets_none(raw: RawFrontend) -> None:
    """The next message is the reply to the next request that has one."""
    offered = need(raw)
    with SessionMemory() as memory:
        payload, files = table(memory)
        requests: list[tuple[Request, bytes, list[int]]] = [
            (Request.SET_FEATURES, u64(offered), []),
            (Request.SET_MEM_TABLE, payload, files),
            (Request.SET_VRING_NUM, RingState(0, 64).encode(), []),
            (Request.SET_VRING_BASE, RingState(0, 0).encode(), []),
        ]
        for request, data, fds in requests:
            raw.tell(request, data, fds)
            try:
                raw.ask(Request.GET_FEATURES)
            except BrokenError as error:
                words = f"after {request.name}, which has no reply: {error}"
                raise BrokenError(words, "communication:4") from error


@pytest.mark.clause("REPLY_ACK:1", "REPLY_ACK:2")
def test_whatever_asks_for_a_reply_gets_one(raw: RawFrontend) -> None:
    offered = need(raw, ACK)
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with SessionMemory() as memory:
            payload, files = table(memory)
            requests: list[tuple[Request, bytes, list[int]]] = [
                (Request.SET_OWNER, b"", []),
                (Request.SET_FEATURES, u64(offered), []),
                (Request.SET_MEM_TABLE, payload, files),
                (Request.SET_VRING_NUM, RingState(0, 64).encode(), []),
                (Request.SET_VRING_BASE, RingState(0, 0).encode(), []),
                (Request.SET_VRING_CALL, ring_file(0, has_fd=True), [eventfd]),
                (Request.SET_VRING_ERR, ring_file(0, has_fd=True), [eventfd]),
                (Request.SET_VRING_ENABLE, RingState(0, 0).encode(), []),
            ]
            for request, data, fds in requests:
                raw.tell(request, data, fds, need_reply=True)
                answer = raw.number(raw.reply(request, "REPLY_ACK:1"), "REPLY_ACK:2")
                if answer:
                    raise BrokenError(f"{request.name} is answered {answer:#x}", "REPLY_ACK:2")
    finally:
        os.close(eventfd)


@pytest.mark.clause("REPLY_ACK:3")
def test_what_has_a_reply_has_no_acknowledgement_beside_it(raw: RawFrontend) -> None:
    offered = need(raw, ACK)
    for _ in range(2):
        raw.tell(Request.GET_FEATURES, need_reply=True)
        reply = raw.reply(Request.GET_FEATURES, "REPLY_ACK:3")
        same(to_u64(reply), offered, "the reply to GET_FEATURES with need_reply")
    protocol = raw.ask(Request.GET_PROTOCOL_FEATURES, "REPLY_ACK:3")
    assert has_feature(protocol, ACK), "REPLY_ACK is not offered any more"


@pytest.mark.clause("multiple-queues:1")
def test_the_number_of_queues_can_be_asked_for(raw: RawFrontend) -> None:
    if not has_feature(raw.ask(Request.GET_FEATURES), VHOST_USER_F_PROTOCOL_FEATURES):
        raise NotApplicableError("the backend has no protocol features")
    offered = raw.ask(Request.GET_PROTOCOL_FEATURES)
    assert has_feature(offered, ProtocolFeature.MQ), "MQ is not offered"


@pytest.mark.clause("GET_QUEUE_NUM:1")
def test_the_number_of_queues_is_one_at_least(raw: RawFrontend) -> None:
    need(raw, ProtocolFeature.MQ)
    count = raw.ask(Request.GET_QUEUE_NUM, "GET_QUEUE_NUM:1")
    # An index has 8 bits in SET_VRING_KICK.
    assert 1 <= count <= 256, f"the backend says that it has {count} queues"


@pytest.mark.clause("SET_BACKEND_REQ_FD:1")
def test_a_channel_is_taken(raw: RawFrontend) -> None:
    need(raw, ACK, ProtocolFeature.BACKEND_REQ)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = Request.SET_BACKEND_REQ_FD
        raw.tell(request, fds=[theirs.fileno()], need_reply=True)
        clause = "SET_BACKEND_REQ_FD:1"
        same(raw.number(raw.reply(request, clause), clause), 0, "the reply to SET_BACKEND_REQ_FD")


@pytest.mark.clause("NET_SET_MTU:1")
def test_a_valid_mtu_is_taken(raw: RawFrontend) -> None:
    offered = need(raw, ACK, ProtocolFeature.MTU)
    raw.tell(Request.SET_FEATURES, u64(offered), need_reply=True)
    raw.reply(Request.SET_FEATURES, "REPLY_ACK:1")
    raw.tell(Request.NET_SET_MTU, u64(1500), need_reply=True)
    clause = "NET_SET_MTU:1"
    same(
        raw.number(raw.reply(Request.NET_SET_MTU, clause), clause), 0, "the reply to an MTU of 1500"
    )


@pytest.mark.clause("RESET_OWNER:1")
def test_reset_owner_leaves_the_connection_as_it_is(raw: RawFrontend) -> None:
    offered = need(raw)
    raw.tell(Request.RESET_OWNER)
    same(raw.ask(Request.GET_FEATURES, "RESET_OWNER:1"), offered, "GET_FEATURES after RESET_OWNER")
