"""Stock Linux on a KVM that runs guests as processors do, with and without the real vhost-net.

The tests of tests/vm_linux/test_devices.py run here once more, on another machine. By night: the
lab's KVM is emulated, and a boot takes a minute or more.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.vm_linux.conftest import Rig, RigOptions, make_rig, skip_without_its_needs
from tests.vm_linux.machine import Linux

# Not all: what they say of the CPU is said of the software CPU alone.
from tests.vm_linux.test_devices import (  # noqa: F401 - they are collected here
    listener,
    test_a_disk_grows_and_shrinks_while_it_is_in_use,
    test_a_disk_tells_what_it_is,
    test_a_driver_gives_its_devices_up_and_finds_them_again,
    test_a_file_system_is_sound_in_the_guest_and_on_the_host,
    test_a_named_port_carries_bytes_both_ways,
    test_a_read_only_disk_is_not_written,
    test_a_user_logs_in_at_the_consoles_prompt,
    test_blocks_are_zeroed,
    test_bulk_from_the_guest_arrives_whole,
    test_bulk_to_the_guest_arrives_whole,
    test_checksums_and_segmentation_are_left_to_the_host,
    test_discarded_blocks_are_given_back_to_the_host,
    test_entropy_comes_from_the_device_and_looks_random,
    test_every_device_has_its_driver,
    test_fio_reads_what_it_wrote,
    test_free_pages_are_given_back_to_the_host,
    test_nothing_in_the_kernels_log_is_a_warning_about_a_device,
    test_pings_are_answered_both_ways,
    test_rngtest_finds_nothing_to_say_against_it,
    test_the_balloon_reports_statistics,
    test_the_balloon_takes_memory_and_gives_it_back,
    test_the_console_has_the_terminals_size_and_follows_it,
    test_the_date_is_the_hosts,
    test_the_end_of_the_disk_can_be_read_and_nothing_beyond,
    test_the_link_goes_down_and_up_with_the_taps,
    test_the_mtu_is_the_hosts_and_frames_of_it_get_through,
    test_two_thousand_reads_take_two_thousand_requests,
)
from virtiopy.vhost.worker import worker_threads
from virtiopy.vm.slots import IoMode

#: What a bulk transfer carries, bytes: the lab's KVM takes seconds for a MiB.
BULK = 8 << 20

pytestmark = [pytest.mark.lab, pytest.mark.nightly]


@dataclass(slots=True, frozen=True)
class Way:
    """How many CPUs the guest has, and who works its network's rings."""

    cpus: int
    mode: IoMode

    def __str__(self) -> str:
        return f"{self.cpus}-{self.mode}"


WAYS = [Way(cpus, mode) for cpus in (1, 2) for mode in (IoMode.VHOST, IoMode.IOEVENTFD)]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture(scope="module")
def rig(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    skip_without_its_needs()
    options = RigOptions("kvm", way.cpus, IoMode.IOEVENTFD, way.mode, bulk=BULK)
    with make_rig(tmp_path_factory.mktemp("linux"), options) as made:
        yield made


@pytest.fixture
def linux(rig: Rig) -> Linux:
    return rig.linux


def test_the_disk_has_a_queue_for_each_cpu_and_the_network_a_pair(linux: Linux, way: Way) -> None:
    assert linux.sh("nproc") == str(way.cpus)
    # Of the four that there are Linux takes as many as it has CPUs.
    assert len(linux.sh("ls -d /sys/block/vda/mq/*").split()) == way.cpus
    assert len(linux.sh("ls -d /sys/class/net/eth0/queues/tx-*").split()) == way.cpus
    for cpu in range(way.cpus):
        linux.sh(f"taskset {1 << cpu} dd if=/dev/vda of=/dev/null bs=4k count=20 iflag=direct 2>&1")


def test_the_kernel_has_a_thread_for_each_pair_and_carries_every_frame(rig: Rig, way: Way) -> None:
    vhost = way.mode is IoMode.VHOST
    assert len(worker_threads(os.getpid())) == (way.cpus if vhost else 0)
    facts = rig.net.facts()
    carried = [facts[name] for name in ("rx_frames", "tx_frames")]
    assert all(count == 0 for count in carried) if vhost else all(carried), facts
