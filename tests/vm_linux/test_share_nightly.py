"""Large trees and many files in a folder of the host's: each has a boot of its own, by night."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.vm_linux.conftest import MOUNT_9P, build_posix, needs
from tests.vm_linux.test_cli import virtiopy
from virtiopy.cache import cache_folder
from virtiopy.host.launcher import find_tool
from virtiopy.host.virtiofsd import find_virtiofsd
from virtiopy.linux.kernels import NoKernelError, find_kernel

pytestmark = [
    needs_unicorn,
    # On a busy machine each takes a quarter of an hour.
    pytest.mark.nightly,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="apt-get install bubblewrap"),
]

FILES = 10_000
SECONDS = 3600
CLIENTS, CLIENT_SECONDS = 4, 60


@dataclass(slots=True, frozen=True)
class Way:
    """An option that shares a folder, and the mount in the guest."""

    option: str
    mount: str


WAYS = [
    pytest.param(
        Way("--share", f"{MOUNT_9P} files /mnt"),
        marks=pytest.mark.skipif(find_tool("diod") is None, reason="apt-get install diod"),
        id="9p",
    ),
    pytest.param(
        Way("--fs", "mount -t virtiofs files /mnt"),
        marks=pytest.mark.skipif(
            find_virtiofsd() is None,
            reason="virtiofsd takes root: apt-get install qemu-system-common",
        ),
        id="fs",
    ),
]


def run(way: Way, folder: Path, script: str, *programs: Path) -> str:
    """Run a script in Linux, with the folder at /mnt; returns its output, all of it good."""
    more = [word for program in programs for word in ("--with", str(program))]
    done = virtiopy(
        *("linux", "--accel", "tcg", "--memory", "1G", *more),
        *(way.option, f"{folder},tag=files", "--", f"{way.mount} && {script}"),
        seconds=SECONDS,
    )
    assert done.status == 0, done.output + done.errors
    return done.output


@pytest.mark.parametrize("way", WAYS)
def test_a_tree_as_large_as_the_kernels_modules_is_copied_and_is_the_same(
    tmp_path: Path, way: Way
) -> None:
    try:
        kernel = find_kernel(cache_folder())
    except NoKernelError as error:
        pytest.skip(str(error))
    assert kernel.modules is not None
    shutil.copytree(kernel.modules, tmp_path / "source", symlinks=True)
    names = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "source").rglob("*"))
    assert len(names) > 3000
    told = run(way, tmp_path, "cp -a /mnt/source /mnt/copy && cd /mnt && find source | sort")
    assert sorted(told.split()) == sorted(["source", *names])
    for folder in ("source", "copy"):
        listed = ["find", folder, "-type", "f", "-exec", "sha256sum", "{}", "+"]
        sums = subprocess.run(listed, cwd=tmp_path, capture_output=True, text=True, check=True)
        (tmp_path / f"{folder}.sums").write_text(sums.stdout.replace(f"  {folder}/", "  copy/"))
    assert (tmp_path / "source.sums").read_text().count("\n") > 3000
    # What the guest reads of the copy is what the host has of the source.
    assert "FAILED" not in run(way, tmp_path, "cd /mnt && sha256sum -cs source.sums")
    same = subprocess.run(["diff", "-r", tmp_path / "source", tmp_path / "copy"], check=False)
    assert same.returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_ten_thousand_files_are_made_listed_read_and_removed(tmp_path: Path, way: Way) -> None:
    build_posix(tmp_path / "posix")
    assert "ok many" in run(way, tmp_path, f"/mnt/posix /mnt {FILES} many", tmp_path / "posix")
    assert os.listdir(tmp_path) == ["posix"]


@pytest.mark.parametrize("way", WAYS)
def test_four_clients_of_dbench_get_through(tmp_path: Path, way: Way) -> None:
    needs("dbench")
    load = Path("/usr/share/dbench/client.txt")
    shutil.copy(load, tmp_path)
    command = f"dbench -D /mnt/clients -c /mnt/client.txt -t {CLIENT_SECONDS} {CLIENTS}"
    program = shutil.which("dbench")
    assert program is not None
    output = run(way, tmp_path, f"mkdir /mnt/clients && {command} 2>&1", Path(program))
    assert "Throughput" in output, output
    # What a client finds amiss. (That there is no semaphore is said, and changes nothing.)
    assert "ERROR" not in output, output


#: What stress-ng does at once, and how often. It reads what it wrote, and compares.
STRESSORS = {
    "hdd": 300,
    "seek": 300,
    "dentry": 200,
    "dir": 200,
    "rename": 200,
    "chmod": 50,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_stress_ng_does_at_once_is_found_as_it_was_left(tmp_path: Path, way: Way) -> None:
    needs("stress-ng")
    each = " ".join(f"--{name} 1 --{name}-ops {count}" for name, count in STRESSORS.items())
    sizes = "--hdd-bytes 4m --seek-size 4m"
    program = shutil.which("stress-ng")
    assert program is not None
    output = run(
        way,
        tmp_path,
        f"mkdir /mnt/work && stress-ng --temp-path /mnt/work --verify --timeout 900 {each} {sizes} "
        "2>&1 && rmdir /mnt/work",
        Path(program),
    )
    assert "successful run completed" in output, output
    assert "fail" not in output, output
