"""Guest memory as a backend is told of it (Memory access, SET_MEM_TABLE, ADD_ and REM_MEM_REG)."""

import os
import select
from collections.abc import Callable
from typing import TypeVar

import pytest

from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.conformance.problems import blaming
from virtiopy.conformance.sessions.memory import REGIONS
from virtiopy.conformance.sessions.vhostuser import VhostUserSession
from virtiopy.memory import Region
from virtiopy.vhost.user.messages import ProtocolFeature
from virtiopy.virtqueue.driver import Allocator

_Done = TypeVar("_Done")

SLOTS = ProtocolFeature.CONFIGURE_MEM_SLOTS


def in_region(session: VhostUserSession, region: int, do: Callable[[], _Done]) -> _Done:
    """Do something whose buffers are to be in one of the regions."""
    before = session.allocator
    start, end = REGIONS[region]
    session.allocator = Allocator(start + 0x100000, end)
    try:
        return do()
    finally:
        session.allocator = before


def good_in(session: VhostUserSession, driver: DeviceDriver, region: int) -> None:
    """Have a good request served whose buffers are in one of the regions."""
    in_region(session, region, driver.good)


def upside_down(region: Region) -> int:
    """Return user addresses in an order that is not the guest's, far from any mapping's."""
    return 0x5A00_0000_0000 - 16 * region.guest_address


@pytest.mark.clause("memory-access:2", "regions:1")
@pytest.mark.parametrize("region", [1, 2])
def test_buffers_are_found_by_their_guest_addresses(
    vhost_user: VhostUserSession, driver: DeviceDriver, region: int
) -> None:
    """All regions but the first start at an offset in their file."""
    driver.start()
    good_in(vhost_user, driver, region)


@pytest.mark.clause("memory-access:1", "SET_VRING_ADDR:1")
def test_rings_are_found_by_the_frontends_addresses(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    vhost_user.share(upside_down)
    driver.start()
    with blaming("memory-access:1"):
        for region in range(len(REGIONS)):
            good_in(vhost_user, driver, region)


@pytest.mark.clause("SET_MEM_TABLE:1")
def test_a_table_takes_the_place_of_the_one_before(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    """The region that has the rings stays where it was; another one is of another file."""
    driver.start()
    driver.good()
    region = vhost_user.memory.regions[2]
    bases = {index: vhost_user.stop_queue(index) for index in sorted(vhost_user.queues)}
    other = os.memfd_create("virtiopy-other", os.MFD_CLOEXEC)
    try:
        os.ftruncate(other, region.size)
        vhost_user.share(replaced={region.guest_address: other})
        for index, base in bases.items():
            vhost_user.start_queue(index, base)
        with blaming("SET_MEM_TABLE:1"):
            sent = in_region(vhost_user, 2, lambda: driver.place(driver.good_request()))
            os.pwrite(other, vhost_user.memory.read(region.guest_address, region.size), 0)
            driver.offer(sent)
            used = vhost_user.wait_for(driver.main_queue, sent.head)
            vhost_user.memory.write(region.guest_address, os.pread(other, region.size, 0))
            driver.check(sent, used)
        vhost_user.stop_queue(driver.main_queue)
    finally:
        os.close(other)


# Region by region


def slot_by_slot(session: VhostUserSession, regions: Callable[[], list[Region]]) -> None:
    """Have the backend have no memory but what is added, of a session that begins anew."""
    session.shares_memory = False
    session.require_protocol(SLOTS)
    for region in regions():
        session.frontend.add_region(region)


@pytest.mark.clause("ADD_MEM_REG:1", "GET_MAX_MEM_SLOTS:1")
def test_regions_are_added_one_by_one(vhost_user: VhostUserSession, driver: DeviceDriver) -> None:
    slot_by_slot(vhost_user, lambda: list(vhost_user.memory.regions))
    with blaming("GET_MAX_MEM_SLOTS:1"):
        most = vhost_user.frontend.max_slots()
        assert most >= 1, f"the backend takes {most} regions"
    start(vhost_user, driver)
    for region in range(len(REGIONS)):
        good_in(vhost_user, driver, region)


def start(session: VhostUserSession, driver: DeviceDriver) -> None:
    """Start the device in the session that there is, and with the memory that there is."""
    session.features = session.wanted(None)
    session.frontend.set_features(session.features)
    for index in driver.choose_queues(session.queue_count):
        session.set_up_queue(index)
    session.driver_ok()


@pytest.mark.clause("REM_MEM_REG:1", "REM_MEM_REG:2")
def test_a_region_that_was_removed_can_be_added_in_another_place(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    slot_by_slot(vhost_user, lambda: list(vhost_user.memory.regions))
    start(vhost_user, driver)
    good_in(vhost_user, driver, 2)
    region = vhost_user.memory.regions[2]
    with blaming("REM_MEM_REG:2"):
        vhost_user.frontend.remove_region(region, offset=region.offset + 4096)
    vhost_user.frontend.user_address = upside_down
    with blaming("REM_MEM_REG:1"):
        vhost_user.frontend.add_region(region)
        good_in(vhost_user, driver, 2)
    good_in(vhost_user, driver, 0)


@pytest.mark.clause("REM_MEM_REG:3")
def test_a_file_that_comes_with_rem_mem_reg_is_closed(
    vhost_user: VhostUserSession, driver: DeviceDriver
) -> None:
    slot_by_slot(vhost_user, lambda: list(vhost_user.memory.regions))
    reader, writer = os.pipe()
    try:
        vhost_user.frontend.remove_region(vhost_user.memory.regions[2], fds=[writer])
        os.close(writer)
        writer = -1
        vhost_user.check_alive()
        ended = select.select([reader], [], [], vhost_user.patience)[0]
        assert ended, "the file is still open in the backend"
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
