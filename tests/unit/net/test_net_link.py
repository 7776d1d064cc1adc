"""The network device (5.1): the link's state, and announcements (5.1.9.5.4)."""

import errno
import select

import pytest

from tests.unit.net.rig import ANNOUNCE, CONFIG_STATUS, MAC, RX, F, FakeLink, Rig, frame, header
from virtiopy.devices.net import Net
from virtiopy.devices.net.control import (
    Ack,
    AnnounceCommand,
    ControlClass,
)
from virtiopy.devices.net.device import Status
from virtiopy.eventloop import READABLE
from virtiopy.transport.registers import Interrupt

# The link's state (5.1.4)


def test_a_link_that_goes_down_and_up_is_told_to_the_driver() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    for is_up in (False, True):
        rig.link.up = is_up
        rig.loop.watches[99].callback(READABLE)
        assert rig.driver.interrupts() == Interrupt.CONFIG_CHANGE
        assert rig.config(CONFIG_STATUS) == int(is_up)


def test_news_of_the_link_that_change_nothing_are_not_told() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.loop.watches[99].callback(READABLE)
    assert rig.driver.interrupts() == Interrupt(0)


def test_a_device_on_a_link_that_is_down_says_so_from_the_start() -> None:
    link = FakeLink()
    link.up = False
    device = Net(link, mac=MAC)
    assert device.config_space()[CONFIG_STATUS[0]] == 0


@pytest.mark.parametrize("event", [select.EPOLLERR, select.EPOLLHUP])
def test_a_link_that_vanishes_is_down_and_watched_no_more(event: int) -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.loop.watches[100].callback(event)
    assert 100 not in rig.loop.watches
    assert rig.config(CONFIG_STATUS) == 0
    assert rig.driver.interrupts() & Interrupt.CONFIG_CHANGE

    rig.link.write_error = OSError(errno.EBADFD, "File descriptor in bad state")
    rig.send(header() + frame())
    rig.supply(2048)
    rig.driver.kick(RX)
    assert rig.dropped == {"tx_dropped_link_down": 1}
    assert rig.watched() == 0


def test_a_link_that_fails_to_be_read_is_down() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.link.read_error = OSError(errno.EBADFD, "File descriptor in bad state")
    rig.ready(READABLE)
    assert rig.config(CONFIG_STATUS) == 0
    assert rig.watched() == 0


def test_closing_the_device_closes_the_link_and_watches_nothing() -> None:
    rig = Rig()
    rig.supply(2048)
    rig.driver.kick(RX)
    rig.device.reset()
    rig.device.close()
    assert rig.link.closed
    assert rig.loop.watches == {}


# Announcements (5.1.9.5.4)


def test_a_link_that_comes_up_again_is_announced_until_acknowledged() -> None:
    rig = Rig(ANNOUNCE)
    rig.link.up = False
    rig.device.link_changed()
    rig.link.up = True
    rig.device.link_changed()
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP | Status.ANNOUNCE
    assert rig.command(ControlClass.ANNOUNCE, AnnounceCommand.ACK) == Ack.OK
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP


def test_an_announcement_can_be_asked_for_and_a_reset_ends_it() -> None:
    rig = Rig(ANNOUNCE)
    rig.device.announce()
    assert rig.driver.interrupts() == Interrupt.CONFIG_CHANGE
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP | Status.ANNOUNCE
    rig.driver.reset()
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP


def test_a_driver_that_cannot_announce_is_not_asked_to() -> None:
    rig = Rig([F.VIRTIO_NET_F_STATUS])
    rig.device.announce()
    assert rig.config(CONFIG_STATUS) == Status.LINK_UP
