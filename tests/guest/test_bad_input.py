import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.support import (
    VIRTIOPY,
    assert_one_sentence,
    make_image,
    needs_kvm,
    run_guest,
    virtiopy,
)
from virtiopy.boot.guests import guest_path

NOBODY = 65534


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    outcome = virtiopy("run", "--disk", tmp_path / "none.img")
    assert_one_sentence(outcome, "does not exist", "truncate")


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "empty.img"
    image.touch()
    assert_one_sentence(virtiopy("run", "--disk", image), "is empty", "truncate")


def test_an_image_of_odd_size_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "odd.img"
    image.write_bytes(bytes(1000))
    assert_one_sentence(virtiopy("run", "--disk", image), "1000 bytes", "multiple of 512")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    assert_one_sentence(virtiopy("run", "--disk", tmp_path), "is a folder")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert_one_sentence(virtiopy("run", "--disk", tmp_path / "pipe"), "neither a file nor a block")


@needs_kvm
def test_an_image_in_use_is_refused(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    command = [*VIRTIOPY, "run", "--guest", "blk", "--append", "blk.hold=1", "--disk", str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any(line == "# flushed 64 sectors\n" for line in first.stdout)
        second = virtiopy("run", "--disk", image)
        reader = virtiopy("run", "--disk", f"{image},readonly=on")
        first.send_signal(signal.SIGTERM)
        first.wait()

    assert_one_sentence(second, "is in use by another program")
    assert_one_sentence(reader, "is in use by another program")
    assert first.returncode == 143


def test_one_image_cannot_be_attached_twice(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    assert_one_sentence(virtiopy("run", "--disk", image, "--disk", image), "is in use")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("colour=red", "does not know 'colour=red'"),
        ("readonly", "does not know 'readonly'"),
        ("readonly=maybe", "use one of on, off"),
        ("cache=sometimes", "use one of writeback, writethrough, none"),
        ("queues=0", "a number from 1 to 64"),
        ("queues=many", "a number from 1 to 64"),
        ("queue-size=100", "a power of 2"),
        ("serial=more-than-twenty-characters", "up to 20 ASCII characters"),
        ("queues=2,queues=2", "has queues twice"),
    ],
)
def test_a_wrong_disk_option_is_refused(tmp_path: Path, option: str, words: str) -> None:
    image = make_image(tmp_path / "disk.img")
    assert_one_sentence(virtiopy("run", "--disk", f"{image},{option}"), words)


def test_a_missing_kvm_is_told_with_its_remedy(tmp_path: Path) -> None:
    script = (
        "import virtiopy.accel.kvm.system as system, sys\n"
        f"system.Kvm.__init__.__defaults__ = ({str(tmp_path / 'kvm')!r},)\n"
        "from virtiopy.cli.main import main\n"
        "sys.argv = ['virtiopy', 'hello', '--mode', 'long', '--accel', 'kvm']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "does not exist: enable virtualization" in done.stderr
    assert done.stderr.count("\n") == 1


@needs_kvm
def test_no_rights_to_kvm_is_told_with_its_remedy() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody without rights")
    if os.stat("/dev/kvm").st_mode & stat.S_IWOTH:
        pytest.skip("/dev/kvm is open to everybody here")
    script = (
        "import sys\n"
        "from virtiopy.cli import hello\n"  # loaded while the files can still be read
        "import virtiopy.cli.main, virtiopy.vm.hello, virtiopy.accel.kvm.accelerator, os\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try:\n"
        "    virtiopy.accel.kvm.accelerator.Kvm()\n"
        "except virtiopy.errors.HostError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "join the group kvm, or run as root" in done.stdout, done.stderr


BYTE = os.fsdecode(b"\xff")
DIGITS = "9" * 4400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--net", f"tap={BYTE}"), "tap='\\udcff', which is no UTF-8 text"),
        (("--net", f"tap=t0,create=on,bridge={BYTE}"), "bridge='\\udcff'"),
        (("--net", f"tap=t0,netns={BYTE}"), "netns='\\udcff'"),
        (("--console", f"stdio,port={BYTE}:pty"), "give each port a name of its own"),
        (("--disk", "http://[::1"), "http://[::1 is no URL"),
        (("--disk", "/proc/self/mem"), "cannot be read as one"),
        (("--disk", "/proc/cpuinfo"), "cannot be read as one"),
        (("--memory", DIGITS), "larger than any size"),
        (("--memory", "8388608T"), "larger than any size"),
        (("--memory-path", "/proc/self/mem"), "no size of its own"),
        (("--memory-path", DIGITS), "File name too long"),
        (("--json", DIGITS), "File name too long"),
        (("--control", DIGITS), "path too long"),
        (("--disk", DIGITS), "File name too long"),
        (("--disk", f"vhost-user={DIGITS}"), "path too long"),
        (("--balloon", f"target={DIGITS}"), "larger than any size"),
        (("--balloon", f"stats={DIGITS}"), "use a number from 0"),
        (("--disk", f"x,queues={DIGITS}"), "use a number from 1"),
        (("--net", f"tap=t0,mtu={DIGITS}"), "use a number from 68"),
    ],
)
def test_arguments_that_no_one_expects_are_refused_in_a_sentence(
    arguments: tuple[str, str], words: str
) -> None:
    outcome = virtiopy("run", "--guest", "greet", *arguments)

    assert_one_sentence(outcome, words)
    assert len(outcome.errors) < 300


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("exits", "--disk", "x", "--requests", DIGITS), "is not a valid integer range"),
        (("exits", "--disk", "x", "--depth", DIGITS), "is not a valid integer range"),
        (("serve", "blk", "x", "--socket", DIGITS), "path too long"),
        (("serve", "blk", "x", "--socket-fd", DIGITS), "is not a valid integer"),
        (("ctl", DIGITS, "status"), "path too long"),
        (("hello", "--mode", BYTE), "'\\udcff' is not one of"),
    ],
)
def test_so_are_those_of_other_commands(command: tuple[str, ...], words: str) -> None:
    outcome = virtiopy(*command)

    assert outcome.status == 2
    assert words in outcome.errors
    assert "Traceback" not in outcome.errors
    assert len(outcome.errors) < 400


@needs_kvm
def test_bytes_that_are_no_text_reach_the_guests_command_line(tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    outcome = run_guest(tmp_path, "greet", "--append", f"x={BYTE}!", "--memory-path", ram)

    assert outcome.status == 1, outcome.errors
    assert "there is no option x" in outcome.output
    assert b"x=\xff!\0" in ram.read_bytes()


def test_an_unknown_guest_is_refused() -> None:
    assert_one_sentence(virtiopy("run", "--guest", "ghost"), "no guest 'ghost'", "probe")


def test_a_missing_guest_image_is_refused(tmp_path: Path) -> None:
    assert_one_sentence(virtiopy("run", "--guest", tmp_path / "no.elf"), "does not exist")


def test_a_guest_that_is_no_elf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "guest").write_text("#!/bin/sh\n")
    assert_one_sentence(virtiopy("run", "--guest", tmp_path / "guest"), "no ELF file")


@needs_kvm
def test_a_guest_without_a_pvh_note_is_refused() -> None:
    path = guest_path("hello-long")
    assert_one_sentence(virtiopy("run", "--guest", path), "no PVH note")


@needs_kvm
def test_a_guest_that_does_not_fit_in_memory_is_refused() -> None:
    outcome = virtiopy("run", "--guest", "blk", "--memory", "1M")
    assert_one_sentence(outcome, "does not fit in memory", "--memory")


@pytest.mark.parametrize("size", ["lots", "-1", "0", "1000", "1.5G"])
def test_a_memory_size_that_is_none_is_refused(size: str) -> None:
    assert_one_sentence(virtiopy("run", f"--memory={size}"), "64M")


@needs_kvm
def test_a_triple_fault_is_told_with_its_address() -> None:
    outcome = virtiopy("run", "--guest", "misbehave", "--append", "misbehave=triple-fault")
    assert_one_sentence(outcome, "triple-faulted at rip 0x")


@needs_kvm
@pytest.mark.parametrize("way", ["spin", "halt"])
def test_a_guest_that_never_ends_is_stopped_at_its_time(way: str) -> None:
    arguments = ("--append", f"misbehave={way}", "--timeout", "0.3")
    outcome = virtiopy("run", "--guest", "misbehave", *arguments)
    assert_one_sentence(outcome, "not done after 0.3 seconds", "--timeout")


@needs_kvm
@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("stray-mmio", "wrote 4 bytes at guest physical address 0xc0000000, where no device is"),
        ("stray-port", "at port 0x5555, where no device is"),
    ],
)
def test_an_access_to_no_device_ends_the_run(way: str, words: str) -> None:
    outcome = virtiopy("run", "--guest", "misbehave", "--append", f"misbehave={way}")
    assert_one_sentence(outcome, words, "--unassigned ignore")


@needs_kvm
@pytest.mark.parametrize("way", ["stray-mmio", "stray-port"])
def test_accesses_to_no_device_can_be_let_pass(tmp_path: Path, way: str) -> None:
    arguments = ("--append", f"misbehave={way}", "--unassigned", "ignore")
    outcome = run_guest(tmp_path, "misbehave", *arguments)

    assert outcome.status == 0, outcome.errors
    assert "read 0xff" in outcome.output
    assert "unassigned" in {row["device"] for row in outcome.report["exits"]["userspace"]}


@needs_kvm
@pytest.mark.parametrize("way", ["fail", "bail", "exception", "bad-tap"])
def test_a_guest_that_reports_failure_is_status_1(way: str) -> None:
    outcome = virtiopy("run", "--guest", "misbehave", "--append", f"misbehave={way}")
    assert outcome.status == 1
    assert "Traceback" not in outcome.errors
    assert "the guest failed" in outcome.errors


@needs_kvm
def test_a_guest_that_says_nothing_and_exits_with_0_passes() -> None:
    outcome = virtiopy("run", "--guest", "misbehave", "--append", "misbehave=silent")
    assert outcome.status == 0


@needs_kvm
def test_a_report_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    outcome = virtiopy("run", "--guest", "greet", "--json", tmp_path / "no" / "report.json")
    assert_one_sentence(outcome, "cannot be written")
    assert outcome.output == "", "the guest had run before"


@pytest.mark.parametrize(
    "command", [("run", "--timeout"), ("exits", "--timeout"), ("ctl", "x", "balloon", "--wait")]
)
def test_what_is_no_number_is_no_number_of_seconds(command: tuple[str, ...]) -> None:
    outcome = virtiopy(*command, "nan")
    assert outcome.status == 2
    assert "'nan' is no number of seconds" in outcome.errors


def test_a_port_without_a_target_is_refused(tmp_path: Path) -> None:
    console = f"file:{tmp_path / 'console'},port=org.example.one"
    assert_one_sentence(virtiopy("run", "--console", console), "port=org.example.one", "a target")


@needs_kvm
def test_guest_memory_in_a_file_can_be_looked_at_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    outcome = run_guest(tmp_path, "greet", "--memory", "16M", "--memory-path", path)

    assert outcome.status == 0, outcome.errors
    assert path.stat().st_size == 16 << 20
    assert b"Hello, World!" in path.read_bytes()


def test_a_memory_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    outcome = virtiopy("run", "--guest", "greet", "--memory-path", tmp_path / "no" / "ram")
    assert_one_sentence(outcome, "cannot be written")


def test_huge_pages_that_are_not_there_are_told_with_the_remedy() -> None:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not free.exists() or int(free.read_text()):
        pytest.skip("this host has huge pages")
    assert_one_sentence(virtiopy("run", "--guest", "greet", "--hugepages"), "nr_hugepages")


def test_a_guest_of_its_own_copy_runs_from_any_place(tmp_path: Path) -> None:
    copy = tmp_path / "my guest.elf"
    shutil.copy(guest_path("greet"), copy)
    if not os.access("/dev/kvm", os.W_OK):
        pytest.skip("/dev/kvm cannot be opened")
    outcome = virtiopy("run", "--guest", copy)
    assert outcome.status == 0
    assert outcome.output.startswith("Hello, World!\n")
