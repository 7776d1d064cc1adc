import contextlib
import functools
import json
import os
import select
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from virtiopy.errors import ConfigError
from virtiopy.host.disk import CacheMode
from virtiopy.host.references import references
from virtiopy.host.storage import DAEMON, Image, StorageDaemon, format_of
from virtiopy.sandbox.landlock import landlock_version
from virtiopy.vhost.user.frontend import VhostUserFrontend

needs_daemon = pytest.mark.skipif(
    shutil.which(DAEMON) is None or shutil.which("qemu-img") is None,
    reason=f"{DAEMON} and qemu-img are missing (qemu-system-common, qemu-utils)",
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("disk.qcow2", "qcow2"),
        ("DISK.QCOW2", "qcow2"),
        ("a.b/disk.vmdk", "vmdk"),
        ("disk.vhdx", "vhdx"),
        ("disk.vdi", "vdi"),
        ("disk.vhd", "vpc"),
        ("disk.img", "raw"),
        ("disk", "raw"),
        ("qcow2", "raw"),
        ("/dev/sda", "raw"),
        ("https://example.org/disk.qcow2?token=x.vmdk", "qcow2"),
        ("nbd://example.org/disk", "raw"),
    ],
)
def test_the_name_of_an_image_says_what_format_it_has(name: str, expected: str) -> None:
    assert format_of(name) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://example.org/x,y", {"driver": "http", "url": "http://example.org/x,y"}),
        (
            "nbd://example.org/my%20disk",
            {
                "driver": "nbd",
                "export": "my disk",
                "server": {"type": "inet", "host": "example.org", "port": "10809"},
            },
        ),
        (
            "nbd://[2001:db8::1]:99",
            {"driver": "nbd", "server": {"type": "inet", "host": "2001:db8::1", "port": "99"}},
        ),
        (
            "nbd+unix:///e?socket=/run/n.sock",
            {
                "driver": "nbd",
                "export": "e",
                "server": {"type": "unix", "path": "/run/n.sock"},
            },
        ),
    ],
)
def test_a_url_is_said_in_qemus_words(url: str, expected: object) -> None:
    assert json.loads(Image(url, "raw").blockdev())["file"] == expected


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("gopher://example.org/x", "gopher"),
        ("nbd:///x", "host"),
        ("nbd+unix:///x", "socket"),
        ("nbd://example.org:99999/x", "port"),
    ],
)
def test_a_url_of_no_use_is_refused(url: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Image(url, "raw").blockdev()


def test_what_is_read_over_http_is_not_written() -> None:
    image = Image("http://example.org/x.qcow2", "qcow2")
    assert image.is_readonly
    assert not json.loads(image.export(Path("s")))["writable"]
    with pytest.raises(ConfigError, match="readonly=off"):
        Image(image.name, "qcow2", readonly=False).blockdev()


def test_cache_modes_are_said_in_qemus_words(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    path.touch()

    def said(cache: CacheMode) -> tuple[bool, bool]:
        image = Image(str(path), "qcow2", cache=cache)
        direct: bool = json.loads(image.blockdev())["cache"]["direct"]
        return direct, json.loads(image.export(path))["writethrough"]

    assert said(CacheMode.WRITEBACK) == (False, False)
    assert said(CacheMode.WRITETHROUGH) == (False, True)
    assert said(CacheMode.NONE) == (True, False)


def test_a_missing_daemon_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="qemu-system-common"):
        StorageDaemon(Image("x.qcow2", "qcow2"))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "a,b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    return Image(str(path), "qcow2")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go meanwhile; nothing may be left there."""
    path = tmp_path / "t"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    yield path
    assert list(path.iterdir()) == []


def wait_for_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0], f"{pid} goes on"
    finally:
        os.close(fd)


@needs_daemon
def test_the_daemon_serves_at_a_private_socket_and_ends_with_us(
    image: Image, temporary: Path
) -> None:
    with StorageDaemon(image) as daemon:
        assert stat.S_IMODE(daemon.path.parent.stat().st_mode) == 0o700
        assert daemon.path.is_relative_to(temporary)
        with VhostUserFrontend(daemon.connect()) as frontend:
            assert int.from_bytes(frontend.get_config(8), "little") == 2048
        pid = daemon.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_daemon
def test_a_daemon_that_is_gone_is_started_again(image: Image, temporary: Path) -> None:
    with StorageDaemon(image) as daemon:
        first = daemon.pid
        os.kill(first, 9)
        wait_for_end(first)
        stream = None
        while stream is None:
            with contextlib.suppress(ConfigError):
                stream = daemon.connect()
        with VhostUserFrontend(stream) as frontend:
            assert frontend.get_config(8)
        assert daemon.pid != first


@needs_daemon
def test_a_daemon_that_cannot_start_again_is_given_up(image: Image, temporary: Path) -> None:
    with StorageDaemon(image) as daemon:
        os.kill(daemon.pid, 9)
        wait_for_end(daemon.pid)
        Path(image.name).write_bytes(b"no qcow2 any more")
        reasons: set[str] = set()
        while "ended" not in "".join(reasons):
            with pytest.raises(ConfigError) as caught:
                daemon.connect()
            reasons.add(str(caught.value))
        last = daemon.pid
        with pytest.raises(ConfigError, match="not in qcow2 format"):
            daemon.connect()
        assert daemon.pid == last


@needs_daemon
def test_an_image_that_another_writes_is_refused(image: Image, temporary: Path) -> None:
    with StorageDaemon(image), pytest.raises(ConfigError, match="in use by another program"):
        StorageDaemon(image)


@needs_daemon
def test_an_image_that_does_not_open_in_time_is_given_up(
    image: Image, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtiopy.host.storage.OPENING_TIME", 0)
    never_opens = functools.partial(subprocess.Popen, ["sleep", "1000"])
    monkeypatch.setattr(StorageDaemon, "_start", lambda daemon: never_opens())
    with pytest.raises(ConfigError, match="server answers"):
        StorageDaemon(image)


# Images that name other files


def _made(tmp_path: Path, *options: str, name: str = "disk.qcow2") -> Path:
    path = tmp_path / name
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), "1M"], check=True)
    return path


@needs_daemon
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("disk.qcow2", ["-f", "qcow2", "-F", "raw", "-b", "{other}"]),
        ("disk.qcow2", ["-f", "qcow2", "-o", "data_file={other},data_file_raw=on"]),
        ("disk.qed", ["-f", "qed", "-F", "raw", "-b", "{other}"]),
    ],
    ids=["backing", "data", "qed"],
)
def test_an_image_that_names_another_file_is_refused_unless_that_is_named(
    tmp_path: Path, name: str, options: list[str]
) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(1 << 20))
    image = _made(tmp_path, *(option.format(other=other) for option in options), name=name)
    format_ = format_of(name)
    with pytest.raises(ConfigError, match=f"names another file.*reaches={other}"):
        StorageDaemon(Image(str(image), format_))
    with StorageDaemon(Image(str(image), format_, reaches=(other,))) as daemon:
        daemon.connect().close()


@needs_daemon
def test_what_a_named_image_names_in_turn_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    middle = _made(tmp_path, "-f", "qcow2", "-F", "raw", "-b", str(secret), name="middle.qcow2")
    image = _made(tmp_path, "-f", "qcow2", "-F", "qcow2", "-b", str(middle))
    with pytest.raises(ConfigError, match=r"middle\.qcow2 names another file.*secret"):
        StorageDaemon(Image(str(image), "qcow2", reaches=(middle,)))


def test_the_extents_of_a_vmdk_are_files_that_it_names(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    extents = b'# Extent description\nRW 2048 FLAT "/etc/shadow" 0\n'
    text = b"# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\n" + extents
    image.write_bytes(text)
    assert references(image, "vmdk") == ["/etc/shadow"]
    # Of no capacity: the descriptor that is inside says where the data is.
    head = b"KDMV" + bytes(8) + (0).to_bytes(8, "little") + bytes(8)
    head += (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
    image.write_bytes(head.ljust(512, b"\0") + text.ljust(512, b"\0"))
    assert references(image, "vmdk") == ["/etc/shadow"]


@needs_daemon
def test_the_daemon_opens_no_other_file(tmp_path: Path) -> None:
    # Not found by us, and so kept from it by the kernel.
    if landlock_version() == 0:
        pytest.skip("this kernel has no Landlock")
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(1 << 20))
    image = _made(tmp_path, "-f", "qcow2", "-F", "raw", "-b", str(other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virtiopy.host.storage.check_references", lambda *arguments: None)
        with pytest.raises(ConfigError, match="Permission denied"):
            StorageDaemon(Image(str(image), "qcow2"))
