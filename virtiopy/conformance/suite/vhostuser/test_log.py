"""The log of the pages that a backend writes to (Migration)."""

import os
from collections.abc import Iterator

import pytest

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import BrokenError, NotApplicableError, about, blaming
from virtiopy.conformance.sessions.memory import END
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.spec import has_feature
from virtiopy.vhost.user.messages import (
    VHOST_F_LOG_ALL,
    VHOST_LOG_PAGE,
    VHOST_USER_F_PROTOCOL_FEATURES,
    LogArea,
    ProtocolFeature,
)

#: Bytes of the log: a bit a page, and as many pages more, by which a used ring is logged.
SIZE = 2 * END // VHOST_LOG_PAGE // 8

#: Where the log is in its file.
OFFSET = 4096

#: What there is of the file: beyond the log as much as it is away from the file's start.
FILE_SIZE = 2 * OFFSET + SIZE

#: By which guest address the used ring is logged: no memory has it.
USED_LOG = END + 64 * VHOST_LOG_PAGE


class Log:
    """A log, of a device that was started."""

    def __init__(self, session: VhostUserSession) -> None:
        self._session = session
        self.fd = os.memfd_create("virtiopy-log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, FILE_SIZE)

    def turn(self, *, on: bool) -> None:
        """Have the backend log what it writes, or not any more."""
        features = self._session.features | 1 << VHOST_USER_F_PROTOCOL_FEATURES
        self._session.frontend.set_all_features(features | on << VHOST_F_LOG_ALL)

    def marked(self) -> set[int]:
        """Return the pages that are marked, by their number."""
        data = os.pread(self.fd, SIZE, OFFSET)
        return {8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}

    def stays_in_place(self) -> None:
        """See that no byte of the file is written but the log's."""
        data = os.pread(self.fd, FILE_SIZE, 0)
        for at, byte in enumerate(data):
            if byte and not OFFSET <= at < OFFSET + SIZE:
                raise BrokenError(
                    f"byte {at} of the log's file is written, and the log is from {OFFSET} to "
                    f"{OFFSET + SIZE}",
                    "migration:3",
                )

    def clear(self) -> None:
        """Have no page marked."""
        os.pwrite(self.fd, bytes(FILE_SIZE), 0)


@pytest.fixture
def dirty_log(vhost_user: VhostUserSession, driver: DeviceDriver) -> Iterator[Log]:
    """Start the device, and give its backend a log; it does not write it yet."""
    vhost_user.used_log = USED_LOG
    vhost_user.require_protocol(ProtocolFeature.LOG_SHMFD)
    if not has_feature(vhost_user.frontend.get_features(), VHOST_F_LOG_ALL):
        raise NotApplicableError("the backend does not offer VHOST_F_LOG_ALL")
    driver.start()
    found = Log(vhost_user)
    try:
        with about("communication:2"):
            vhost_user.frontend.set_log(LogArea(SIZE, OFFSET), found.fd)
        yield found
    finally:
        os.close(found.fd)


def written(driver: DeviceDriver) -> set[int]:
    """Have requests served, and return the pages that the device has written to for them."""
    pages: set[int] = set()
    for request in driver.requests():
        sent = driver.send(request)
        driver.finish(sent)
        for piece in sent.pieces:
            if piece.writable:
                last = piece.address + piece.length - 1
                pages |= set(range(piece.address // VHOST_LOG_PAGE, last // VHOST_LOG_PAGE + 1))
    return pages


@pytest.mark.clause("migration:1", "migration:3", "communication:2")
def test_the_pages_of_buffers_are_marked(
    dirty_log: Log, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    dirty_log.turn(on=True)
    pages = written(driver)
    if not pages:
        raise NotApplicableError("no request of this device's that is good has a part to write")
    dirty_log.stays_in_place()
    marked = dirty_log.marked()
    missing = sorted(pages - marked)
    if missing and marked:
        words = f"page {missing[0]} was written to, and {sorted(marked)[:8]} are marked"
        raise BrokenError(words, "migration:3")
    assert not missing, f"page {missing[0]} was written to, and no page is marked"


@pytest.mark.clause("migration:2", "migration:3")
def test_the_used_ring_is_marked_by_its_own_address(
    dirty_log: Log, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    dirty_log.turn(on=True)
    index = driver.main_queue
    with blaming("migration:2"):
        vhost_user.log_used_ring(index)
    driver.good()
    dirty_log.stays_in_place()
    page = USED_LOG // VHOST_LOG_PAGE
    assert page in dirty_log.marked(), (
        f"page {page}, by which the used ring is logged, is not marked"
    )


@pytest.mark.clause("migration:5")
def test_nothing_is_marked_without_log_all(
    dirty_log: Log, vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    dirty_log.turn(on=True)
    driver.good()
    dirty_log.turn(on=False)
    dirty_log.clear()
    driver.good()
    marked = dirty_log.marked()
    assert not marked, f"page {min(marked)} is marked, and VHOST_F_LOG_ALL is not set"
