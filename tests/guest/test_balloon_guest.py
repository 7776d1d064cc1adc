"""The balloon guest in a VM, and what its host gets back."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guest.accelerators import each_accelerator
from tests.guest.support import (
    VIRTIOPY,
    Outcome,
    assert_one_sentence,
    needs_kvm,
    needs_qemu,
    run_guest,
    run_in_qemu,
    virtiopy,
)
from tests.patience import PATIENCE, timed
from virtiopy.control.client import ask

MIB = 1 << 20
PAGE = 4096
MODES = ["trapped", "ioeventfd"]


#: How often it is looked for.
POLL_SECONDS = 0.005


def run_balloon(
    folder: Path, mode: str, accelerator: str, options: str = "", append: str = ""
) -> Outcome:
    """Run the balloon guest, which has to pass."""
    value = ",".join(filter(None, [options, f"mode={mode}"]))
    outcome = run_guest(
        *(folder, "balloon", "--balloon", value, "--accel", accelerator, "--append", append)
    )
    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    return outcome


@each_accelerator
@pytest.mark.parametrize("mode", MODES)
def test_the_balloon_guest_passes_and_gets_zeroes_back(
    tmp_path: Path, mode: str, name: str
) -> None:
    outcome = run_balloon(tmp_path, mode, name, append="balloon.zeroed=1")
    assert len(outcome.report["tests"]) > 30


@each_accelerator
@pytest.mark.parametrize("mode", MODES)
def test_a_balloon_with_every_option_passes(tmp_path: Path, mode: str, name: str) -> None:
    outcome = run_balloon(tmp_path, mode, name, "target=1M,stats=1,deflate-on-oom=on")
    assert any("DEFLATE_ON_OOM" in test["description"] for test in outcome.report["tests"])


@each_accelerator
@pytest.mark.parametrize("mode", MODES)
def test_a_hostile_driver_harms_no_page_but_its_own(tmp_path: Path, mode: str, name: str) -> None:
    outcome = run_balloon(tmp_path, mode, name, append="balloon.mode=hostile")
    assert len(outcome.report["tests"]) > 20


@needs_qemu
@needs_kvm
@pytest.mark.parametrize("append", ["", "balloon.mode=hostile"])
def test_the_same_balloon_guest_passes_on_a_device_of_qemus(append: str) -> None:
    device = "virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on"
    run_in_qemu("balloon", "-device", device, append=append)


@needs_kvm
def test_a_kick_is_an_exit_in_trapped_mode_alone(tmp_path: Path) -> None:
    trapped = run_balloon(tmp_path, "trapped", "kvm")
    ioeventfd = run_balloon(tmp_path, "ioeventfd", "kvm")
    assert trapped.exits("balloon0", "QueueNotify") > 100
    assert ioeventfd.exits("balloon0", "QueueNotify") == 0


class Follower:
    """A running guest that does what its balloon asks for."""

    def __init__(self, process: subprocess.Popen[str], control: Path) -> None:
        self.process = process
        self.control = control

    def balloon(self) -> dict[str, Any]:
        answer: Any = ask(self.control, {"command": "status"})
        balloon = answer["devices"]["balloon0"]
        assert isinstance(balloon, dict)
        return balloon

    def memory(self) -> Path:
        """The memfd, by the process's file descriptor."""
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            if link.readlink().name.startswith("memfd:virtiopy-guest-memory"):
                return link
        raise AssertionError("there is no guest memory")

    def allocated(self) -> int:
        return self.memory().stat().st_blocks * 512

    def resident(self) -> int:
        """Bytes of shared memory that the process has resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(kib) for kib in re.findall(r"RssShmem:\s+(\d+) kB", status)) * 1024

    def set_target(self, size: int) -> None:
        outcome = virtiopy("ctl", self.control, "balloon", "--target", str(size))
        assert outcome.status == 0, outcome.errors

    def wait_for(self, size: int) -> None:
        """Wait until the driver says that so much is in the balloon."""
        wait_until(lambda: self.balloon()["actual"] == size)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        # Leave the guest the processor.
        time.sleep(POLL_SECONDS)


@contextmanager
def following(
    folder: Path,
    size: int,
    options: str = "",
    *,
    mode: str = "ioeventfd",
    accelerator: str = "auto",
) -> Iterator[Follower]:
    """Run the guest that follows its balloon; it has `size` bytes to give, and writes to each page.

    At the end it has to have all of them back.
    """
    control = folder / "vm.sock"
    value = ",".join(filter(None, [options, f"mode={mode}"]))
    append = f"balloon.mode=follow balloon.zeroed=1 balloon.pages={size // PAGE}"
    command = [*VIRTIOPY, "run", "--guest", "balloon", "--balloon", value, "--append", append]
    command += ["--accel", accelerator]
    command += ["--memory", str(size + 16 * MIB), "--control", str(control)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any(line == "# ready\n" for line in process.stdout), "the guest did not start"
            guest = Follower(process, control)
            yield guest
            guest.set_target(0)
            output = process.stdout.read()
            assert process.wait(PATIENCE) == 0, output
            assert not control.exists()
        finally:
            process.kill()


@each_accelerator
@pytest.mark.parametrize("mode", MODES)
@timed
def test_64_mib_are_given_back_within_a_second_and_return_as_zeroes(
    tmp_path: Path, mode: str, name: str
) -> None:
    with following(tmp_path, 64 * MIB, mode=mode, accelerator=name) as guest:
        allocated, resident = guest.allocated(), guest.resident()
        start = time.monotonic()

        ask(guest.control, {"command": "balloon", "target": 64 * MIB})
        wait_until(lambda: guest.allocated() <= allocated - 64 * MIB)

        assert time.monotonic() - start < 1
        assert guest.allocated() == allocated - 64 * MIB
        # The page of registers is another, as it shows a new target, and has been read or not.
        assert abs(guest.resident() - (resident - 64 * MIB)) <= PAGE
        guest.wait_for(64 * MIB)
        assert guest.balloon()["discarded"] == 64 * MIB
        assert guest.balloon()["ignored"] == {}
        # The guest looks at the first and the last word of each page that it is given back, and
        # fails on what is not 0.


@each_accelerator
@pytest.mark.parametrize("mode", MODES)
def test_the_driver_follows_a_target_up_and_down(tmp_path: Path, mode: str, name: str) -> None:
    with following(tmp_path, 8 * MIB, "target=2M", mode=mode, accelerator=name) as guest:
        guest.wait_for(2 * MIB)
        for target in (8 * MIB, 4 * MIB, 6 * MIB):
            guest.set_target(target)
            guest.wait_for(target)
            assert guest.balloon()["ballooned"] == target


@each_accelerator
@pytest.mark.parametrize("mode", MODES)
def test_statistics_are_asked_for_while_the_guest_runs(
    tmp_path: Path, mode: str, name: str
) -> None:
    with following(tmp_path, 8 * MIB, "stats=1", mode=mode, accelerator=name) as guest:
        wait_until(lambda: guest.balloon()["statistics"].get("MEMFREE") == 8 * MIB)
        guest.set_target(4 * MIB)
        wait_until(lambda: guest.balloon()["statistics"]["MEMFREE"] == 4 * MIB)
        assert guest.balloon()["statistics"]["MEMTOT"] == 8 * MIB


@needs_kvm
def test_a_target_that_the_guests_memory_cannot_meet_ends_in_a_sentence(tmp_path: Path) -> None:
    assert_one_sentence(virtiopy("run", "--balloon", "target=65M"), "68157440", "at most 67108864")
    with following(tmp_path, 8 * MIB) as guest:
        too_much = virtiopy("ctl", guest.control, "balloon", "--target", "1G")
        assert_one_sentence(too_much, "1073741824", "at most")
        guest.set_target(4096)
        guest.wait_for(4096)


@needs_kvm
def test_ctl_shows_the_status_of_a_running_guest(tmp_path: Path) -> None:
    with following(tmp_path, 8 * MIB) as guest:
        for option in ([], ["--json"]):
            outcome = virtiopy("ctl", guest.control, "status", *option)
            assert outcome.status == 0, outcome.errors
            assert "balloon0" in outcome.output
            assert "DRIVER_OK" in outcome.output
        guest.set_target(4096)
        guest.wait_for(4096)


@needs_kvm
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("target=much", ["much"]),
        ("target=100", ["100", "4096"]),
        ("stats=x", ["stats=x"]),
        ("size=1M", ["size=1M", "target=..."]),
    ],
)
def test_a_balloon_that_cannot_be_made_ends_in_a_sentence(option: str, words: list[str]) -> None:
    assert_one_sentence(virtiopy("run", "--balloon", option), *words)


@needs_kvm
def test_ctl_waits_for_the_driver_and_says_when_it_does_not_come(tmp_path: Path) -> None:
    with following(tmp_path, 8 * MIB) as guest:
        arguments = ("ctl", guest.control, "balloon", "--wait", "10", "--target")
        assert virtiopy(*arguments, "8M").output == "balloon0: target 8M\n"
        assert guest.balloon()["actual"] == 8 * MIB
        # The guest has no more than 8 MiB to give.
        late = virtiopy("ctl", guest.control, "balloon", "--wait", "0.1", "--target", "9M")
        assert_one_sentence(late, "8388608 bytes", "9437184")
