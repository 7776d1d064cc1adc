"""Records of frames, read back by a library that did not write them."""

import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket, InterfaceDescription

from virtiopy.errors import ConfigError
from virtiopy.host.pcap import PcapFile

FRAMES = [bytes(range(60)), b"\xff" * 14, bytes(9000)]


def record(path: Path) -> None:
    """Make a record of FRAMES, the second one outbound."""
    file = PcapFile(path, "tap0")
    for frame, inbound in zip(FRAMES, (True, False, True), strict=True):
        file.record(frame, inbound=inbound)
    file.close()


def test_another_library_reads_the_frames_their_direction_and_the_interface(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.pcapng"
    before = path.parent.stat().st_mtime
    record(path)
    with path.open("rb") as stream:
        blocks = list(FileScanner(stream))
    packets = [block for block in blocks if isinstance(block, EnhancedPacket)]
    (interface,) = [block for block in blocks if isinstance(block, InterfaceDescription)]
    assert interface.link_type == 1
    assert interface.options["if_name"] == "tap0"
    assert [packet.packet_data for packet in packets] == FRAMES
    assert [packet.options["epb_flags"].inout for packet in packets] == [
        "inbound",
        "outbound",
        "inbound",
    ]
    assert all(abs(packet.timestamp - before) < 100 for packet in packets)


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is missing")
def test_tcpdump_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    record(path)
    done = subprocess.run(
        ["tcpdump", "-n", "-e", "-r", str(path)], capture_output=True, text=True, check=True
    )
    # Frames of a protocol that it does not know are followed by their bytes.
    assert len(re.findall(r"^\d\d:", done.stdout, re.MULTILINE)) == len(FRAMES)
    assert "EN10MB" in done.stderr


def test_a_frame_is_in_the_file_as_soon_as_it_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    file = PcapFile(path, "tap0")
    file.record(FRAMES[0], inbound=True)
    assert FRAMES[0] in path.read_bytes()
    file.close()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a file in a folder"):
        PcapFile(tmp_path / "none" / "x.pcapng", "tap0")


def test_a_full_disk_ends_the_record_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    file = PcapFile(path, "tap0")
    file.record(FRAMES[0], inbound=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        file.record(FRAMES[2], inbound=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.record(FRAMES[2], inbound=True)
    file.close()
    assert FRAMES[2] not in path.read_bytes()


def test_a_disk_that_is_full_from_the_start_is_told() -> None:
    with pytest.raises(ConfigError, match="No space left"):
        PcapFile(Path("/dev/full"), "tap0")


def test_a_record_ends_at_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.pcapng"
    file = PcapFile(path, "tap0", limit=1000)
    for _ in range(100):
        file.record(FRAMES[0], inbound=True)
    file.close()
    assert 1000 <= path.stat().st_size < 1000 + 100 + len(FRAMES[0])
    assert len(caplog.records) == 1
    assert "pcap-limit= gives it more" in caplog.text
