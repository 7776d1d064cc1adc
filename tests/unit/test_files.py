"""What a user has is not overwritten: reports, records, RAM files, images, sockets."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiopy.errors import ConfigError
from virtiopy.files import STANDARD_OUTPUT, check_output, create_output, write_output
from virtiopy.host.disk import DiskImage
from virtiopy.host.pcap import PcapFile
from virtiopy.host.stream import FileStream
from virtiopy.memory import PAGE_SIZE, GuestMemory

THEIRS = b"what a user keeps\n" * 100


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs"
    path.write_bytes(THEIRS)
    return path


# Files that are written

WRITERS = {
    "report": lambda path: write_output(path, "The report", "text"),
    "pcap": lambda path: PcapFile(path, "tap0").close(),
    "console": lambda path: FileStream(path).close(),
    "memory": lambda path: GuestMemory.allocate(PAGE_SIZE, path=path).close(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_users_file_is_left_alone(theirs: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name another file"):
        WRITERS[name](theirs)
    assert theirs.read_bytes() == THEIRS


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_to_a_users_file_is_not_followed(theirs: Path, name: str) -> None:
    link = theirs.with_name("link")
    link.symlink_to(theirs)
    with pytest.raises(ConfigError, match="link"):
        WRITERS[name](link)
    assert theirs.read_bytes() == THEIRS
    assert link.is_symlink()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_an_earlier_run_is_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ours"
    for _ in range(2):
        WRITERS[name](path)
    assert os.listdir(tmp_path) == ["ours"]


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_file_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "empty"
    path.touch()
    WRITERS[name](path)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_its_owners_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ours"
    before = os.umask(0)
    try:
        WRITERS[name](path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_replacement_of_an_earlier_report_is_told(tmp_path: Path) -> None:
    path, lines = tmp_path / "ours", list[str]()
    for _ in range(2):
        write_output(path, "The report", "text", told=lines.append)
    assert lines == [f"The report {path} takes the place of an earlier one."]


def test_a_report_names_virtiopy_where_the_file_system_has_no_attributes(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"virtiopy": "0.1"}')
    check_output(path, "The report")


def test_a_dash_is_standard_output(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_output(STANDARD_OUTPUT, "The report", "text")
    assert capsys.readouterr().out == "text"
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writer = create_output(path, "The pcap file")
        os.write(writer, b"live")
        os.close(writer)
        assert os.read(reader, 100) == b"live"
    finally:
        os.close(reader)


def test_a_memory_file_is_reset_by_the_word_for_it(theirs: Path) -> None:
    with GuestMemory.allocate(PAGE_SIZE, path=theirs, reset=True) as memory:
        assert memory.read(0, 16) == bytes(16)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_an_earlier_run_that_its_user_changed_is_left_alone(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "ours"
    WRITERS[name](path)
    path.write_bytes(THEIRS)
    with pytest.raises(ConfigError, match="name another file"):
        WRITERS[name](path)
    assert path.read_bytes() == THEIRS


@pytest.mark.parametrize(
    "content",
    [
        b"# my notes on virtiopy",
        # The label of an ext4 file system, in its superblock.
        bytes(1024 + 120) + b"virtiopy",
        b'{"disk": "scratch.img", "run by": "virtiopy"}',
    ],
)
def test_the_word_in_a_users_file_does_not_make_it_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "theirs"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="name another file"):
        check_output(path, "The report")


def test_a_page_names_virtiopy_where_the_file_system_has_no_attributes(tmp_path: Path) -> None:
    from virtiopy.check.judge import Verdict
    from virtiopy.check.report import write

    path = tmp_path / "report.html"
    write(Verdict([]), path)
    os.removexattr(path, "user.virtiopy")
    check_output(path, "The report")


def test_a_memory_file_of_a_guest_that_runs_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    # A lock is a process's: this one's second guest would share it.
    script = (
        "import pathlib, sys\n"
        "from virtiopy.memory import GuestMemory\n"
        "with GuestMemory.allocate(4096, path=pathlib.Path(sys.argv[1])) as memory:\n"
        "    memory.write(0, b'running')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(ConfigError, match="is in use, by another guest"):
            GuestMemory.allocate(PAGE_SIZE, path=path)
        assert path.read_bytes().startswith(b"running")
        other.communicate()


# Images

MAGIC = {
    "qcow2": b"QFI\xfb\0\0\0\3",
    "vmdk": b"KDMV\1\0\0\0",
    "vhdx": b"vhdxfile",
    "vpc": b"conectix",
    "qcow": b"QFI\xfb\0\0\0\1",
    "qed": b"QED\0",
    "parallels": b"WithouFreSpacExt",
    "vdi": b"<<< disk image >>>\n".ljust(64) + b"\x7f\x10\xda\xbe",
}


@pytest.mark.parametrize("name", MAGIC)
def test_an_image_of_another_format_is_not_taken_for_raw(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.img"
    # Of an odd size: the advice is not to cut it, either.
    path.write_bytes(MAGIC[name].ljust(1000, b"\0"))
    with pytest.raises(ConfigError, match=f"say format={name}, or format=raw"):
        DiskImage(path)


@pytest.mark.parametrize(("magic", "name"), [(b"conectix", "vpc"), (b"koly", "dmg")])
def test_an_image_of_another_format_is_known_by_its_end(
    tmp_path: Path, magic: bytes, name: str
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096) + magic.ljust(512, b"\0"))
    with pytest.raises(ConfigError, match=f"ends as a {name} image does: say format={name}"):
        DiskImage(path)


def test_the_user_may_say_that_such_bytes_are_a_raw_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(MAGIC["qcow2"].ljust(1024, b"\0"))
    with DiskImage(path, any_content=True) as disk:
        assert disk.size == 1024


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An image, and the loop device that has it."""
    losetup, mkfs = shutil.which("losetup"), shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
    if losetup is None or mkfs is None:
        pytest.skip("losetup or mkfs.ext4 is missing: install mount and e2fsprogs")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run([mkfs, "-q", str(image)], check=True)
    made = subprocess.run(
        [losetup, "--find", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"there is no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield image, device
    subprocess.run([losetup, "--detach", str(device)], check=True)


def test_a_mounted_block_device_is_not_written(
    loop_device: tuple[Path, Path], tmp_path: Path
) -> None:
    _, device = loop_device
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", str(device), str(folder)], check=True)
    try:
        with pytest.raises(ConfigError, match=r"in use.*unmount it"):
            DiskImage(device)
        with DiskImage(device, readonly=True) as disk:
            assert disk.size == 8 << 20
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_block_device_that_is_free_is_written(loop_device: tuple[Path, Path]) -> None:
    with DiskImage(loop_device[1]) as disk:
        assert disk.size == 8 << 20


@pytest.mark.parametrize("name", ["report", "pcap", "console"])
def test_no_file_is_written_onto_a_block_device(loop_device: tuple[Path, Path], name: str) -> None:
    _, device = loop_device
    before = device.read_bytes()
    with pytest.raises(ConfigError, match="overwrite a block device"):
        WRITERS[name](device)
    assert device.read_bytes() == before


def test_the_image_of_a_loop_device_is_not_written(loop_device: tuple[Path, Path]) -> None:
    image, device = loop_device
    with pytest.raises(ConfigError, match=f"losetup -d {device}"):
        DiskImage(image)


# Sockets


def test_serve_removes_its_own_socket_alone(tmp_path: Path) -> None:
    from virtiopy.devices.rng import Rng
    from virtiopy.eventloop import EventLoop
    from virtiopy.vhost.user.server import Server, listen

    path = tmp_path / "serve.sock"
    with EventLoop("test") as loop:
        server = Server(Rng(), loop, listen(path))
        path.unlink()
        path.write_bytes(THEIRS)
        server.close()
    assert path.read_bytes() == THEIRS


def test_serve_removes_its_socket(tmp_path: Path) -> None:
    from virtiopy.devices.rng import Rng
    from virtiopy.eventloop import EventLoop
    from virtiopy.vhost.user.server import Server, listen

    path = tmp_path / "serve.sock"
    with EventLoop("test") as loop:
        server = Server(Rng(), loop, listen(path))
        assert path.is_socket()
        server.close()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(FileNotFoundError):
        probe.connect(str(path))
