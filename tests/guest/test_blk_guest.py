import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.guest.support import (
    QEMU,
    VIRTIOPY,
    holds_final_pattern,
    make_image,
    needs_kvm,
    needs_qemu,
    run_guest,
)
from tests.patience import PATIENCE
from virtiopy.boot.guests import guest_path

pytestmark = needs_kvm


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


# Each value of each option, in few runs: the guest has more than a hundred tests, and a mode never
# changes what a device does.
@pytest.mark.parametrize(
    "options",
    [
        ",mode=trapped",
        ",mode=ioeventfd",
        ",mode=native",
        ",cache=writethrough,queues=4,workers=2,mode=native",
        ",cache=none,queue-size=4,poll-us=0,mode=native",
        ",cache=writethrough,queues=4,queue-size=4,mode=trapped",
        ",cache=none,queues=2,queue-size=1024,serial=twenty-characters-ab,mode=ioeventfd",
    ],
)
def test_the_blk_guest_passes_and_its_writes_are_in_the_image(
    tmp_path: Path, image: Path, options: str
) -> None:
    outcome = run_guest(tmp_path, "blk", "--disk", f"{image}{options}")

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert outcome.report["passed"]
    assert len(outcome.report["tests"]) > 100
    assert holds_final_pattern(image)


def test_the_blk_guest_uses_every_queue_of_several(tmp_path: Path, image: Path) -> None:
    outcome = run_guest(tmp_path, "blk", "--disk", f"{image},queues=4")

    names = [t["description"] for t in outcome.report["tests"] if t["outcome"] == "passed"]
    assert any("every queue works, 4 of 4 tried" in name for name in names)


def test_the_blk_guest_drives_two_disks_without_mixing_them(tmp_path: Path, image: Path) -> None:
    other = make_image(tmp_path / "other.img", 1 << 20)

    outcome = run_guest(tmp_path, "blk", "--disk", image, "--disk", f"{other},serial=second")

    assert outcome.status == 0, outcome.failures()
    assert {t["description"][:4] for t in outcome.report["tests"]} == {"blk0", "blk1"}
    assert holds_final_pattern(image)
    assert holds_final_pattern(other)
    assert 'device ID "second"' in outcome.output


def test_a_read_only_disk_is_read_and_stays_as_it_is(tmp_path: Path, image: Path) -> None:
    image.chmod(0o400)
    before = hashlib.sha256(image.read_bytes()).digest()

    outcome = run_guest(tmp_path, "blk", "--disk", f"{image},readonly=on")

    assert outcome.status == 0, outcome.failures()
    assert hashlib.sha256(image.read_bytes()).digest() == before


def test_the_default_guest_looks_at_a_disk_and_writes_nothing(tmp_path: Path, image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).digest()

    outcome = run_guest(tmp_path, "probe", "--disk", image)

    assert outcome.status == 0, outcome.failures()
    assert "capacity 8192 sectors" in outcome.output
    assert hashlib.sha256(image.read_bytes()).digest() == before


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
def test_what_was_flushed_survives_a_killed_vmm(tmp_path: Path, image: Path, cache: str) -> None:
    command = [*VIRTIOPY, "run", "--guest", "blk", "--append", "blk.hold=1"]
    with subprocess.Popen(
        [*command, "--disk", f"{image},cache={cache}"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        flushed = any(line == "# flushed 64 sectors\n" for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    assert flushed
    assert process.returncode == -signal.SIGKILL
    assert holds_final_pattern(image)


def test_a_killed_vmm_leaves_the_image_free_to_use(tmp_path: Path, image: Path) -> None:
    command = [*VIRTIOPY, "run", "--guest", "blk", "--append", "blk.hold=1", "--disk", str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "# flushed 64 sectors\n" for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    assert run_guest(tmp_path, "probe", "--disk", image).status == 0


@pytest.mark.parametrize(
    ("mode", "exit_free", "each"),
    [
        # The interrupt's handler reads InterruptStatus and writes InterruptACK.
        pytest.param("trapped", "off", (1, 3), id="trapped"),
        pytest.param("trapped", "on", (1, 2), id="trapped-exit-free"),
        pytest.param("ioeventfd", "on", (0, 0), id="ioeventfd-exit-free"),
    ],
)
def test_a_request_costs_its_kick_and_its_interrupt(
    tmp_path: Path, image: Path, mode: str, exit_free: str, each: tuple[int, int]
) -> None:
    def count(requests: int) -> tuple[int, int]:
        arguments = ("--disk", image, "--mode", mode, "--exit-free", exit_free)
        outcome = run_guest(tmp_path, "blk", *arguments, "--append", f"blk.requests={requests}")
        assert outcome.status == 0, outcome.errors
        rows = outcome.report["exits"]["userspace"]
        device = sum(row["count"] for row in rows if row["device"] == "blk0")
        return outcome.exits("blk0", "QueueNotify"), device

    few, many = count(10), count(60)

    # What the driver does besides the requests cancels out.
    assert [b - a for a, b in zip(few, many, strict=True)] == [50 * count for count in each]


def test_no_kick_reaches_userspace_in_ioeventfd_mode(tmp_path: Path, image: Path) -> None:
    arguments = ("--disk", image, "--mode", "ioeventfd", "--append", "blk.requests=50")
    outcome = run_guest(tmp_path, "blk", *arguments)

    assert outcome.status == 0, outcome.errors
    assert outcome.exits("blk0", "QueueNotify") == 0


def test_two_disks_of_one_vm_can_be_in_different_modes(tmp_path: Path, image: Path) -> None:
    other = make_image(tmp_path / "other.img", 1 << 20)
    disks = ("--disk", f"{image},mode=trapped", "--disk", f"{other},mode=ioeventfd")
    outcome = run_guest(tmp_path, "blk", *disks)

    assert outcome.status == 0, outcome.failures()
    assert outcome.exits("blk0", "QueueNotify") > 0
    assert outcome.exits("blk1", "QueueNotify") == 0


def test_the_kernel_counts_at_least_the_mmio_exits_that_reached_userspace(
    tmp_path: Path, image: Path
) -> None:
    exits = run_guest(tmp_path, "blk", "--disk", image).report["exits"]
    if "mmio_exits" not in exits["kernel"]:
        pytest.skip("this kernel has no binary statistics")

    mmio = sum(row["count"] for row in exits["userspace"] if row["reason"] == "MMIO")
    assert exits["kernel"]["mmio_exits"] >= mmio > 0


@needs_qemu
@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_the_same_blk_guest_passes_on_a_device_of_qemus(image: Path, accelerator: str) -> None:
    command = [
        *(QEMU, "-M", f"microvm,accel={accelerator},acpi=off,isa-serial=off"),
        *("-global", "virtio-mmio.force-legacy=false", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-kernel", str(guest_path("blk"))),
        *("-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        *("-drive", f"if=none,id=d,file={image},format=raw,discard=unmap"),
        *("-device", "virtio-blk-device,drive=d,num-queues=2,serial=qemu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)

    assert "not ok" not in done.stdout
    # isa-debug-exit makes status 0 a 1.
    assert done.returncode == 1, done.stdout + done.stderr
    assert holds_final_pattern(image)
