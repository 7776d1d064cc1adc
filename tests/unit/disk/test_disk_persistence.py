"""What is on disk, and when."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.disk.bench import buffer
from virtiopy.host.disk import CacheMode, DiskImage


@pytest.mark.parametrize(("stable", "flags"), [(True, os.RWF_DSYNC), (False, 0)])
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_a_stable_write_asks_the_kernel_for_a_stable_write(
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    stable: bool,
    flags: int,
    *,
    misaligned: bool,
    cache: CacheMode,
) -> None:
    seen: list[int] = []
    pwritev = os.pwritev

    def write(fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        seen.append(flags)
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", write)
    with DiskImage(image, cache=cache) as disk:
        disk.write(0, [buffer(512, misaligned=misaligned)], stable=stable)
    assert seen == [flags]


def test_a_flush_syncs_the_data_of_the_image(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    with DiskImage(image) as disk:
        disk.flush()
    assert synced == [str(image)]
