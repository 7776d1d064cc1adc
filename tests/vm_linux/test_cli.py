"""`virtiopy linux` and `virtiopy run --kernel`, as a user has them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import VIRTIOPY, Outcome, assert_one_sentence, needs_kvm
from tests.patience import PATIENCE
from tests.unit.test_elf import MIB, XEN_NOTE, build
from tests.unit.test_symbols import STT_FUNC, add_symbols
from tests.vm_linux.rubbish import build_rubbish
from virtiopy.cache import cache_folder
from virtiopy.linux.initramfs import ROOT_FOLDERS
from virtiopy.linux.kernels import NoKernelError, find_kernel

pytestmark = [
    needs_unicorn,
    pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox-static is missing"),
]


@pytest.fixture(scope="module", autouse=True)
def kernel() -> Path:
    try:
        return find_kernel(cache_folder()).image
    except NoKernelError as error:
        pytest.skip(str(error))


def virtiopy(*arguments: str | Path, seconds: float = PATIENCE) -> Outcome:
    done = subprocess.run(
        [*VIRTIOPY, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, {})


def test_a_command_needs_no_arguments_besides(kernel: Path) -> None:
    done = virtiopy("linux", "--accel", "tcg", "--", "uname", "-snr")
    assert done.status == 0, done.errors
    assert done.output == f"Linux virtiopy {kernel.name.removeprefix('vmlinuz-')}\n"
    assert done.errors == ""


def test_the_status_and_the_exits_are_the_commands(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    report = tmp_path / "report.json"
    line = "printf written | dd of=/dev/vda conv=fsync 2>/dev/null; ls /dev/vda; exit 42"
    done = virtiopy(
        *("linux", "--accel", "tcg", "--disk", image, "--exits", "--json", report, "--", line)
    )
    assert done.status == 42, done.errors
    assert done.output == "/dev/vda\n"
    assert image.read_bytes().startswith(b"written")
    assert "InterruptACK" in done.errors
    assert json.loads(report.read_text())["status"] == 42


@pytest.mark.parametrize(
    ("writes", "status"),
    [
        ("discard", 0),
        pytest.param("keep", 0, marks=pytest.mark.nightly),
        pytest.param("refuse", 1, marks=pytest.mark.nightly),
    ],
)
def test_a_folder_is_the_root_and_changes_as_the_words_say(
    tmp_path: Path, writes: str, status: int
) -> None:
    folder = tmp_path / "a, b"
    for name in ROOT_FOLDERS if writes != "discard" else ():
        (folder / name).mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("the host's\n")
    value = f"{folder},writes={writes}".replace("a, b", "a,, b")
    line = "cat /file; echo more >>/file; mkdir /mnt && cat /file"
    done = virtiopy("linux", "--accel", "tcg", "--root", value, "--", line)
    assert done.status == status, done.errors
    changed = "the host's\nmore\n"
    if writes == "refuse":
        assert "Read-only file system" in done.output
    else:
        assert done.output.endswith(f"the host's\n{changed}")
    assert (folder / "file").read_text() == (changed if writes == "keep" else "the host's\n")
    assert (folder / "mnt").exists() == (writes == "keep")


# A kernel by its file


def run(kernel: Path, *arguments: str | Path) -> Outcome:
    return virtiopy("run", "--accel", "tcg", "--serial", "stdout", "--kernel", kernel, *arguments)


def guest(tmp_path: Path, code: str) -> Path:
    """A kernel of a few instructions of 32-bit protected mode."""
    path = tmp_path / "kernel.elf"
    data = bytes.fromhex(code)
    path.write_bytes(build((MIB, bytes(16) + data, len(data) + 16), notes=(XEN_NOTE,)))
    return path


#: mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, 10; out dx, al
SAY_H = "66baf803 b068 ee b00a ee"


def test_power_off_ends_with_0(tmp_path: Path) -> None:
    # mov dx, 0x600; mov al, 5 << 2 | 1 << 5; out dx, al; jmp $
    done = run(guest(tmp_path, SAY_H + "66ba0006 b034 ee ebfe"))
    assert (done.status, done.output) == (0, "h\n"), done.errors


def test_rubbish_in_the_power_registers_ends_nothing(tmp_path: Path) -> None:
    # mov dx, 0x600; mov eax, -1; out dx, eax; in eax, dx; mov al, 7; out 0xf4, al; jmp $
    done = run(guest(tmp_path, "66ba0006 b8ffffffff ef ed b007 e6f4 ebfe"))
    assert done.status == 7, done.errors


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=needs_kvm)])
def test_rubbish_in_every_register_of_the_pc_ends_nothing(tmp_path: Path, accel: str) -> None:
    kernel = build_rubbish(tmp_path)
    done = virtiopy("run", "--accel", accel, "--serial", "stdout", "--kernel", kernel)
    assert done.status == 7, done.errors
    assert done.output.endswith("\nh\n")


def test_a_triple_fault_ends_with_1_and_the_last_line(tmp_path: Path) -> None:
    done = run(guest(tmp_path, SAY_H + "0f0b"))
    assert done.status == 1, done.errors
    assert "triple-faulted at rip 0x100" in done.errors
    assert "Its last lines:\n    h\n" in done.errors


def test_a_silent_kernel_is_told_where_it_is(tmp_path: Path) -> None:
    done = run(guest(tmp_path, "ebfe"), "--timeout", "0.5", "--rng")
    assert done.status == 2
    told = done.errors.splitlines()[-1]
    for words in (
        "CPU 0 is at rip 0x100010",
        "said nothing on the serial port",
        "rng0 has device status 0x0",
        "--timeout",
    ):
        assert words in told


def test_a_silent_kernel_with_symbols_is_told_in_which_function_it_is(tmp_path: Path) -> None:
    path = guest(tmp_path, SAY_H + "ebfe")
    # The last instruction is 10 bytes on.
    functions = {"speak": (MIB + 0x10, 10, STT_FUNC), "wait_for_ever": (MIB + 0x1A, 2, STT_FUNC)}
    path.write_bytes(add_symbols(path.read_bytes(), functions))
    done = run(path, "--timeout", "0.5")
    assert done.status == 2
    assert "CPU 0 is at rip 0x10001a (wait_for_ever+0x0)" in done.errors


def test_a_kernel_that_spoke_is_told_with_what_it_said_last(tmp_path: Path) -> None:
    done = run(guest(tmp_path, SAY_H + "ebfe"), "--timeout", "0.5")
    assert 'it said last "h"' in done.errors


def test_a_panic_ends_with_1_and_the_last_lines(kernel: Path) -> None:
    # Without an initrd there is nothing to be the first process.
    done = virtiopy(
        *("run", "--accel", "tcg", "--serial", "none", "--kernel", kernel),
        *("--append", "quiet nokaslr mitigations=off random.trust_cpu=on cryptomgr.notests"),
    )
    assert done.status == 1, done.errors
    assert "the kernel panicked" in done.errors
    assert "Unable to mount root fs" in done.errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", os.devnull], "is a device"),
        (["--kernel", __file__], "is no kernel that can be booted"),
        (["--kernel", "/nonexistent"], "cannot be read"),
        (["--initrd", os.devnull], "is for a kernel: name one with --kernel"),
        (["--guest", "blk", "--kernel", os.devnull], "leave one of them out"),
        (["--kernel", "KERNEL", "--memory", "64K"], "a kernel needs more than 1 MiB"),
        (["--kernel", "KERNEL", "--serial", "nowhere"], "--serial has 'nowhere': use one of none,"),
        (["--kernel", "KERNEL", "--append", "x" * 2048], "Linux takes 2047: give it less"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    arguments: list[str], words: str, kernel: Path
) -> None:
    named = [str(kernel) if argument == "KERNEL" else argument for argument in arguments]
    assert_one_sentence(virtiopy("run", "--accel", "tcg", *named), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", __file__], "is no kernel that can be booted"),
        (["--module", "no-such"], "has no module no_such"),
        (["--append", "x" * 2048], "Linux takes 2047: give it less"),
    ],
)
def test_linux_is_not_begun_with_what_cannot_be(arguments: list[str], words: str) -> None:
    assert_one_sentence(virtiopy("linux", "--accel", "tcg", *arguments, "--", "true"), words)


def test_no_such_program_is_told_before_the_boot() -> None:
    assert_one_sentence(virtiopy("linux", "--", "frobnicate", "now"), "no program frobnicate")


def test_exits_need_a_command() -> None:
    assert_one_sentence(virtiopy("linux", "--exits"), "give one after --")


# virtiopy exits in Linux


def register(mode: dict[str, Any], name: str) -> float:
    rows = mode["measured"]["registers"]
    return sum(float(row["per_request"]) for row in rows if row["register"] == name)


def test_a_read_by_linux_costs_the_exits_of_its_driver(kernel: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    paths = {"json": tmp_path / "exits.json", "html": tmp_path / "exits.html"}
    done = virtiopy(
        *("exits", "--kernel", kernel, "--accel", "tcg", "--disk", image),
        *("--modes", "trapped,ioeventfd", "--exit-free", "off"),
        *("--json", paths["json"], "--html", paths["html"]),
        *("--", "dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct; echo 'no \"I/O\"'"),
    )
    assert done.status == 0, done.errors
    document = json.loads(paths["json"].read_text())
    assert document["workload"]["command"].startswith("dd if=/dev/vda")
    trapped, ioeventfd = document["modes"]
    for mode, kicks in ((trapped, 1.0), (ioeventfd, 0.0)):
        assert mode["measured"]["requests"] == 200
        assert register(mode, "QueueNotify") == kicks
        # Where a read is done before the last interrupt is answered there is one for both.
        assert 0.9 < register(mode, "InterruptACK") <= 1.0
        assert register(mode, "InterruptStatus") == register(mode, "InterruptACK")
        assert mode["measured"]["kicks"] is None
    assert "/dev/vda" in done.output
    assert "dd if=/dev/vda" in paths["html"].read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", os.devnull], "give one after --"),
        (["--depth", "2", "--", "true"], "--depth is for virtiopy's own guest"),
        (["--requests", "2", "--", "true"], "--requests is for virtiopy's own guest"),
        (["--", "frobnicate", "now"], "no program frobnicate"),
        (["--modes", "trapped", "--exit-free", "off", "--", "true"], "made no request of blk0"),
        (["--modes", "trapped", "--exit-free", "off", "--", "echo bad; false"], "'bad'"),
    ],
)
def test_a_command_that_cannot_be_measured_is_told_in_one_sentence(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    done = virtiopy("exits", "--accel", "tcg", "--disk", image, *arguments)
    assert_one_sentence(done, words)
