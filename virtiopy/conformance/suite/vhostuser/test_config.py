"""The configuration space by messages (GET_CONFIG, SET_CONFIG)."""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import (
    BlockedError,
    BrokenError,
    LeftError,
    NotApplicableError,
)
from virtiopy.conformance.sessions.raw import RawFrontend
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.conformance.suite.vhostuser.test_messages import need
from virtiopy.errors import PeerError
from virtiopy.vhost.user.messages import (
    CONFIG_MAX,
    ConfigAccess,
    ConfigFlags,
    ProtocolFeature,
    Request,
)

#: Flags of SET_CONFIG that mean nothing.
UNKNOWN_FLAGS = 1 << 4


def whole(session: VhostUserSession, driver: DeviceDriver) -> bytes:
    """Return what every device of the type has in its configuration space."""
    if not driver.config_size:
        raise NotApplicableError("the device has no configuration space")
    session.require_protocol(ProtocolFeature.CONFIG)
    return session.frontend.get_config(driver.config_size)


@pytest.mark.clause("GET_CONFIG:1")
@pytest.mark.parametrize("size", [1, 8, CONFIG_MAX])
def test_a_reply_is_as_large_as_what_was_asked_for(raw: RawFrontend, size: int) -> None:
    """Or it has no payload, to say that there is an error."""
    need(raw, ProtocolFeature.CONFIG)
    asked = ConfigAccess(0, bytes(size)).encode()
    raw.tell(Request.GET_CONFIG, asked)
    reply = raw.reply(Request.GET_CONFIG, "GET_CONFIG:1")
    if len(reply.payload) not in {0, len(asked)}:
        raise BrokenError(
            f"{len(reply.payload)} bytes are the reply to {len(asked)}", "GET_CONFIG:1"
        )


@pytest.mark.clause("GET_CONFIG:2")
def test_a_part_of_the_configuration_space_is_read_at_its_offset(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    config = whole(vhost_user, driver)
    for offset in range(len(config)):
        size = min(4, len(config) - offset)
        same(
            vhost_user.frontend.get_config(size, offset),
            config[offset : offset + size],
            f"the configuration space at offset {offset}",
        )


@pytest.mark.clause("SET_CONFIG:1")
def test_a_field_that_is_read_only_is_not_written(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    write_the_first_field(vhost_user, driver, ConfigFlags.WRITABLE)


@pytest.mark.clause("SET_CONFIG:2")
def test_flags_that_mean_nothing_let_no_field_be_written(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    write_the_first_field(vhost_user, driver, UNKNOWN_FLAGS)


@pytest.mark.clause("REPLY_ACK:2")
def test_a_write_that_is_not_taken_is_not_acknowledged_as_a_success(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    """As a frontend would tell its guest; a backend that leaves instead says nothing wrong."""
    vhost_user.require_protocol(ProtocolFeature.CONFIG, ProtocolFeature.REPLY_ACK)
    before = whole(vhost_user, driver)
    driver.start()
    try:
        taken = vhost_user.frontend.set_config(0, spoilt(before))
    except PeerError as error:
        raise NotApplicableError("the backend leaves at a write of what is read-only") from error
    finally:
        vhost_user.leave()
    vhost_user.reset()
    if vhost_user.read_config(0, len(before)) != before:
        raise BlockedError("SET_CONFIG:1")
    if taken:
        raise BrokenError(
            "SET_CONFIG of a read-only field is answered with 0, and the field is as before",
            "REPLY_ACK:2",
        )


def spoilt(config: bytes) -> bytes:
    """Return other bytes for the first field."""
    return bytes(byte ^ 0x5A for byte in config[:2])


def write_the_first_field(session: VhostUserSession, driver: DeviceDriver, flags: int) -> None:
    """Write what no driver may, and see that it is as before; the backend may leave, or refuse."""
    before = whole(session, driver)
    driver.start()
    try:
        session.frontend.set_config(0, spoilt(before), flags)
        session.check_alive()
    except (LeftError, PeerError):
        session.leave()
        session.reset()
    same(session.read_config(0, len(before)), before, "the configuration space")
