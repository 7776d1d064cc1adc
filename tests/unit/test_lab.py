import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.kernel import LabMissingError, get_kernel
from tests.lab.machine import CACHE, REPOSITORY, vng


def run_lab_tests(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "lab", *arguments]
    return subprocess.run(
        [*command, "tests/lab/test_vm_core.py"],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_without_the_lab_its_tests_are_skipped_loudly_with_the_remedy(tmp_path: Path) -> None:
    done = run_lab_tests(str(tmp_path), "--lab=boot")

    assert done.returncode == 0, done.stdout
    assert "THE LAB DID NOT RUN" in done.stdout
    assert "apt-get install qemu-system-x86" in done.stdout
    assert "SKIPPED [12]" in done.stdout


def test_a_lab_that_does_not_come_up_fails_its_tests_with_what_it_said(tmp_path: Path) -> None:
    if not vng().exists() or not list(CACHE.glob("linux-image-*")):
        pytest.skip("virtme-ng or its kernel is missing, as no lab test has run")
    for tool in ("qemu-system-x86_64", "modprobe", "busybox", "file"):
        (tmp_path / tool).write_text("#!/bin/sh\necho broken on purpose >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)

    done = run_lab_tests(f"{tmp_path}:{os.environ['PATH']}", "--lab=boot", "-k", "kernel_counts")

    assert done.returncode == 1, done.stdout
    assert "The lab ended early" in done.stdout
    assert "2 failed" in done.stdout


def test_no_kernel_and_no_apt_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabMissingError, match=r"no apt-get .* linux-image-amd64"):
        get_kernel(tmp_path / "cache")


def test_a_kernel_that_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "linux-image-6.1.0-1-amd64" / "boot" / "vmlinuz-6.1.0-1-amd64"
    image.parent.mkdir(parents=True)
    image.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert get_kernel(tmp_path).image == image
