"""The suite, put to virtiopy's own devices and to a backend that nobody here wrote."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conformance.runs import REPOSITORY, WholeRuns, run_suite
from virtiopy.conformance.report.document import read
from virtiopy.conformance.targets.builders import BUILDERS

DEVICES = list(BUILDERS)

#: Those of `make check`, where the suite itself is looked at; `make test` takes all.
QUICK = ["blk", "rng", "balloon"]

#: Statements that a backend of others' does not meet: by the test that shows it.
QEMU_DIFFERENCES = {
    # A device MUST take direct descriptors with an indirect one at their end: libvhost-user looks
    # for the flag in the first descriptor alone.
    "test_direct_descriptors_may_come_before_an_indirect_table": "2.7.5.3.2:2",
    # What is in size_max is the most bytes of a segment (5.2.4): 0, where SIZE_MAX is offered, lets
    # no request be. Drivers that are known have a least value of their own.
    "test_a_limit_lets_requests_be[size_max]": "5.2.4:2",
    # writeback MUST start as 0 for a driver that has CONFIG_WCE without FLUSH: it stays as the
    # driver of the session before has left it.
    "test_writeback_starts_as_0_though_a_driver_before_that_could_flush_had_it_at_1": "5.2.5.2:3",
    # A ring that is disabled MUST be processed without side effects: libvhost-user keeps note,
    # and QEMU's export does not ask.
    "test_no_write_to_a_disk_is_carried_out_while_its_ring_is_disabled": "ring-states:5",
    # A ring without a call eventfd is one whose driver polls: libvhost-user writes to -1, and
    # leaves.
    "test_a_ring_whose_driver_polls_is_worked": "SET_VRING_CALL:2",
    # libvhost-user gives the configuration space from its start, whatever the offset.
    "test_a_part_of_the_configuration_space_is_read_at_its_offset": "GET_CONFIG:2",
    # At least as many bytes as the used length says MUST be written: of the ID the length says 20,
    # and what lies after the string's NUL is not written (5.2.6 has it padded).
    "test_all_20_bytes_of_a_device_id_string_are_written_with_nul_after_its_end": "2.7.8.2:2",
}

#: Those that it meets where it is done before it is asked: a busy machine may let it.
QEMU_IN_TIME = {
    # All requests in flight MUST be completed before the reply to GET_VRING_BASE. (The sentence is
    # younger than this QEMU; that a ring which is stopped MUST NOT be processed is not.) What
    # has random walks fail is the same: tests/conformance/test_qemu.py.
    "test_what_is_in_flight_is_completed_before_a_ring_stops": "GET_VRING_BASE:2",
    **{
        f"test_a_queue_reset_at_any_step_of_a_requests_life[{act}]": "GET_VRING_BASE:2"
        for act in (
            "queue-reset-when-kicked",
            "queue-reset-when-in-the-middle",
            "queue-reset-over-and-over",
        )
    },
}


# What differs in a variant is what it offers, and no transport has a say in that.
@pytest.mark.parametrize(
    ("device", "transport"),
    [
        *(
            pytest.param(device, "mmio", marks=[] if device in QUICK else [pytest.mark.thorough])
            for device in DEVICES
        ),
        *(
            pytest.param(
                device,
                "vhost-user",
                # Most of what differs is the transport's.
                marks=[pytest.mark.thorough if device in {"blk", "net"} else pytest.mark.nightly],
            )
            for device in DEVICES
            if "-" not in device
        ),
    ],
)
def test_a_device_of_virtiopys_meets_every_statement(
    whole_runs: WholeRuns, device: str, transport: str
) -> None:
    run = whole_runs.on(f"inproc:{device}", transport)
    assert run.status == 0, run.output
    [subject] = run.document["subjects"]
    holes = [clause["id"] for clause in subject["clauses"] if clause["outcome"] == "not tested"]
    assert holes == []


@pytest.mark.thorough
def test_a_backend_is_spawned_for_each_test(tmp_path: Path) -> None:
    command = f"{sys.executable} -m virtiopy serve rng --socket {{socket}}"
    run = run_suite(
        f"--virtio-spawn={command}", "--virtio-device=rng", "-k", "framing", folder=tmp_path
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.thorough
def test_a_backend_that_wants_its_in_flight_area_back_gets_it(tmp_path: Path) -> None:
    """As those on libvhost-user do, before any ring starts."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 21))
    sample = REPOSITORY / "tests" / "guest" / "sample_backend.py"
    command = f"{sys.executable} {sample} {image} {{socket}}"
    run = run_suite(
        f"--virtio-spawn={command}", "--virtio-device=blk", "-k", "framing", folder=tmp_path
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.thorough
def test_qemu_storage_daemon_meets_every_statement_but_the_known(tmp_path: Path) -> None:
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is missing")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 21))
    command = (
        f"{program} --blockdev driver=file,node-name=disk,filename={image} "
        "--export vhost-user-blk,id=export,node-name=disk,writable=on,"
        "addr.type=unix,addr.path={socket}"
    )
    report = tmp_path / "report.json"
    run = run_suite(
        f"--virtio-spawn={command}",
        "--virtio-device=blk",
        # Once a request was never used, a fifth of this: as long as a loaded machine may take.
        "--virtio-patience=5",
        f"--virtio-report={report}",
        folder=tmp_path,
    )
    document = read(report)
    failed = {
        test["test"].rpartition("::")[2]: test["about"]
        for test in document["tests"]
        if test["outcome"] == "failed"
    }
    assert failed | QEMU_IN_TIME == QEMU_DIFFERENCES | QEMU_IN_TIME, run.stdout


@pytest.mark.parametrize(
    "builder", ["build_zoned", pytest.param("build_host_aware", marks=pytest.mark.thorough)]
)
def test_a_zoned_device_meets_every_statement_about_zones(
    whole_runs: WholeRuns, builder: str
) -> None:
    """No device here is zoned: the one of tests.conformance.zoned is only for these tests."""
    run = whole_runs.on(f"python:tests.conformance.zoned:{builder}", "mmio")
    assert run.status == 0, run.output


def test_the_page_of_peers_has_the_known_differences() -> None:
    page = (REPOSITORY / "docs" / "peers.md").read_text()
    _, _, differences = page.partition("## qemu-storage-daemon")
    listed = re.findall(r"^\| ([\w.-]+:\d+) \| QEMU \|", differences, re.MULTILINE)
    assert sorted(listed) == sorted({*QEMU_DIFFERENCES.values(), *QEMU_IN_TIME.values()})
