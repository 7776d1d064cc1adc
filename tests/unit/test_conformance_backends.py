"""What the suite's drivers start of a vhost-user backend: no more than it has, nor all of many."""

import pytest

from tests.conformance.ramdisk import RamDisk
from virtiopy.conformance.drivers import driver_of
from virtiopy.conformance.problems import NotApplicableError
from virtiopy.conformance.sessions.trace import Trace
from virtiopy.conformance.targets.builders import MAC, Rig, build_net, build_ninep
from virtiopy.conformance.targets.hosts import Host, Link
from virtiopy.conformance.targets.target import inproc
from virtiopy.devices.net import Net
from virtiopy.devices.ninep import header_of


class Elsewhere(Host):
    """A link's other end that is not the suite's."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def close(self) -> None:
        self._link.release()


def net_without_a_hand() -> Rig:
    link = Link(pairs=2)
    return Rig(Net(link, mac=MAC, queue_size=64), Elsewhere(link))


class ManyQueues(RamDisk):
    queue_sizes = (8,) * 256


def test_no_control_queue_is_started_of_a_backend_in_another_process() -> None:
    with inproc(net_without_a_hand, served=True).open(Trace()) as session:
        driver_of(session).start()
        assert session.offers("VIRTIO_NET_F_CTRL_VQ")
        assert not session.has("VIRTIO_NET_F_CTRL_VQ")
        assert sorted(session.queues) == [0, 1]
        with pytest.raises(NotApplicableError, match="is for the frontend"):
            session.require("VIRTIO_NET_F_CTRL_VQ")


def test_the_control_queue_of_a_device_of_this_process_is_started() -> None:
    with inproc(build_net, served=True).open(Trace()) as session:
        driver_of(session).start()
        assert session.has("VIRTIO_NET_F_CTRL_VQ", "VIRTIO_NET_F_MQ")
        assert sorted(session.queues) == [0, 1, 2, 3, 4]


def test_of_many_request_queues_the_first_one_in_the_middle_and_the_last_are_set_up() -> None:
    with inproc(ManyQueues, served=True).open(Trace()) as session:
        driver = driver_of(session)
        driver.start()
        assert sorted(session.queues) == [0, 128, 255]
        for request in driver.requests():
            driver.do(request)


def test_each_9p_request_has_a_tag_of_its_own() -> None:
    """A server that is slower than its driver has several in flight, and tells them by that."""
    with inproc(build_ninep).open(Trace()) as session:
        driver = driver_of(session)
        tags = {header_of(driver.good_request().readable)[2] for _ in range(8)}
    assert len(tags) == 8
