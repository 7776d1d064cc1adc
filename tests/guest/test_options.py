"""A guest driver bails out at options that it does not know, before it touches a device."""

from pathlib import Path

import pytest

from tests.guest.support import needs_qemu, run_guest, run_in_qemu
from virtiopy.boot.guests import guest_path

SOFTWARE_CPU = ("--accel", "tcg")
SIZE = 4 << 20

OF_EACH = {
    "attack": "attack",
    "balloon": "balloon.mode",
    "blk": "blk.hold",
    "console": "console.mode",
    "fs": "fs.requests",
    "misbehave": "misbehave",
    "mistakes": "mistake",
    "net": "net.mode",
    "ninep": "ninep.requests",
    "smp": "smp.end",
    "scsi": "scsi.vhost",
    "vsock": "vsock.echo",
}


def guests() -> list[str]:
    """Name every guest driver, but for the hellos, which read no command line."""
    names = (path.stem for path in guest_path("blk").parent.glob("*.elf"))
    return sorted(name for name in names if not name.startswith("hello-"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xa5" * SIZE)
    return path


def is_untouched(image: Path) -> bool:
    return image.read_bytes() == b"\xa5" * SIZE


@pytest.mark.parametrize(
    ("append", "said"),
    [
        ("blk.request=5", "there is no option blk.request: this guest has blk.hold blk.requests"),
        ("requests=5", "there is no option requests: "),
        ("quiet", "there is no option quiet: "),
        ("blk.requests=1 blk.requests=2", "the option blk.requests is given twice"),
        ("blk.requests=0x10000000000000000", "the option blk.requests needs a number"),
        ("blk.requests=-1", "the option blk.requests needs a number"),
        ("blk.requests", "the option blk.requests needs a number"),
    ],
)
def test_a_disk_is_left_alone_for_an_option_that_is_wrong(
    tmp_path: Path, image: Path, append: str, said: str
) -> None:
    outcome = run_guest(tmp_path, "blk", *SOFTWARE_CPU, "--disk", str(image), "--append", append)

    assert outcome.status == 1, outcome
    assert f"Bail out! {said}" in outcome.output
    assert is_untouched(image)


@pytest.mark.parametrize("guest", guests())
def test_every_guest_bails_out_at_a_word_it_does_not_know(tmp_path: Path, guest: str) -> None:
    outcome = run_guest(tmp_path, guest, *SOFTWARE_CPU, "--append", f"{guest}.moed=tests")

    assert outcome.status == 1, outcome
    knows = f"this guest has {OF_EACH[guest]}" if guest in OF_EACH else "this guest has none"
    assert f"Bail out! there is no option {guest}.moed: {knows}" in outcome.output


def test_an_end_that_smp_does_not_know_is_refused(tmp_path: Path) -> None:
    outcome = run_guest(tmp_path, "smp", *SOFTWARE_CPU, "--append", "smp.end=bot")

    assert outcome.status == 1, outcome
    assert "Bail out! smp.end=bot is not boot" in outcome.output


@needs_qemu
def test_the_words_that_qemu_adds_are_known() -> None:
    run_in_qemu("rng", "-device", "virtio-rng-device", append="", accel="tcg")
