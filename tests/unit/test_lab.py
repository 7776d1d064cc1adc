import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import machine, plugin
from tests.lab.kernel import LabMissingError, get_kernel
from tests.lab.machine import CACHE, REPOSITORY, check_tools
from tests.linux import guest
from tests.patience import PATIENCE
from virtiopy.linux.kernels import LinuxKernel

# Most of them run pytest in pytest.
pytestmark = pytest.mark.thorough


def run_lab_tests(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "lab", *arguments]
    return subprocess.run(
        [*command, "tests/lab/test_vm_core.py"],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_without_the_lab_its_tests_are_skipped_loudly_with_the_remedy(tmp_path: Path) -> None:
    done = run_lab_tests(str(tmp_path), "--lab=boot")

    assert done.returncode == 0, done.stdout
    assert "THE LAB DID NOT RUN" in done.stdout
    assert "apt-get install qemu-system-x86" in done.stdout
    assert "SKIPPED [12]" in done.stdout


def test_a_lab_that_does_not_come_up_fails_its_tests_with_what_it_said(tmp_path: Path) -> None:
    try:
        check_tools()
        get_kernel(CACHE)
    except LabMissingError as error:
        pytest.skip(f"{plugin.NOT_TO_BE_HAD}: {error}")
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


@pytest.mark.parametrize(
    ("word", "boots"), [("Assertion 'a <= b' failed.", 2), ("Kernel panic", 1)]
)
def test_linux_is_booted_again_where_qemu_itself_fell_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    word: str,
    boots: int,
) -> None:
    image = tmp_path / "linux-image-6.1.0-1-amd64" / "boot" / "vmlinuz-6.1.0-1-amd64"
    count, share = tmp_path / "count", tmp_path / "share"
    begin = f'echo boot >>{count}; [ $(wc -l <{count}) = 1 ] && echo "{word}" && exit 1'
    monkeypatch.setattr(machine, "check_tools", lambda: None)
    monkeypatch.setattr(
        machine, "get_kernel", lambda cache: LinuxKernel(image, "6.1.0-1-amd64", None)
    )
    monkeypatch.setattr(
        machine,
        "_boot_command",
        lambda *arguments: ["sh", "-c", f"{begin}; : >{share}/output.txt; echo 0 >{share}/status"],
    )
    monkeypatch.setattr(pytestconfig.option, "lab", "boot")

    with guest.boot(pytestconfig, share, "blk.sh", qemu=[], modules=(), tools={}, cpus=1) as lab:
        assert lab.wait(PATIENCE)
        assert lab.status == (0 if boots == 2 else None)
    assert len(count.read_text().splitlines()) == boots


# What goes on between the two sides, with a lab that boots at once

OUTCOMES = """
import os, pytest

@pytest.mark.lab
class TestInside:
    def test_passes(self):
        assert "VIRTIOPY_LAB" in os.environ

    def test_fails(self):
        assert 1 == 2, "the reason"

    def test_is_skipped(self):
        pytest.skip("a thing is missing")

    @pytest.mark.xfail(reason="a known bug", strict=True)
    def test_fails_as_expected(self):
        assert 1 == 2

    @pytest.fixture
    def broken(self):
        raise RuntimeError("no such luck")

    def test_has_a_broken_fixture(self, broken):
        pass

def test_outside():
    assert "VIRTIOPY_LAB" not in os.environ
"""

HANG = """
import pytest, time

pytestmark = [pytest.mark.lab, pytest.mark.timeout(0.5)]

def test_hangs():
    time.sleep(1000)

def test_after_it():
    pass
"""

DEATH = """
import os, pytest

pytestmark = pytest.mark.lab

def test_lives():
    pass

def test_dies():
    os.abort()

def test_never_runs():
    pass
"""

Run = Callable[..., str]


@pytest.fixture
def run_pretended(tmp_path: Path) -> Run:
    """Run pytest on a text, with a pretended lab; returns what it prints."""

    def run(tests: str, *arguments: str) -> str:
        (tmp_path / "test_text.py").write_text(tests)
        (tmp_path / "conftest.py").write_text(
            'pytest_plugins = ["tests.lab.plugin", "tests.unit.pretend_lab"]\n'
        )
        settings = "[pytest]\naddopts = -ra\nmarkers = lab\ntimeout = 60\n"
        (tmp_path / "pytest.ini").write_text(settings)
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        return done.stdout

    return run


def test_what_happens_in_the_lab_is_reported_as_if_it_were_here(run_pretended: Run) -> None:
    output = run_pretended(OUTCOMES, "--lab=boot")

    assert "1 failed, 2 passed, 1 skipped, 1 xfailed, 1 error" in output, output
    assert "AssertionError: the reason" in output
    assert "a thing is missing" in output
    assert "5 tests ran in" in output


def test_tests_for_the_lab_come_last(run_pretended: Run) -> None:
    output = run_pretended(OUTCOMES, "--lab=boot")

    assert output.index("::test_outside PASSED") < output.index("::test_passes PASSED")


def test_only_chosen_tests_run_in_the_lab(run_pretended: Run) -> None:
    output = run_pretended(OUTCOMES, "--lab=boot", "-k", "test_passes or test_is_skipped")

    assert "1 passed, 1 skipped, 4 deselected" in output, output
    assert "2 tests ran in" in output


def test_where_the_host_has_it_all_they_run_directly(run_pretended: Run) -> None:
    output = run_pretended(OUTCOMES, "--lab=direct", "-k", "test_is_skipped or test_outside")

    assert "1 passed, 1 skipped" in output
    assert "1 tests ran directly on this host" in output


def test_a_test_that_hangs_in_the_lab_ends_at_its_time_and_the_next_runs(
    run_pretended: Run,
) -> None:
    output = run_pretended(HANG, "--lab=boot")

    # Twice what it says itself: the lab is slow.
    assert "Timeout (>1.0s)" in output
    assert "1 failed, 1 passed" in output, output


def test_a_lab_that_dies_fails_the_rest_with_its_last_words(run_pretended: Run) -> None:
    output = run_pretended(DEATH, "--lab=boot")

    assert "2 failed, 1 passed" in output, output
    assert "The lab ended early, with status -6" in output
    assert "the pretended console" in output
    assert "Fatal Python error: Aborted" in output


def test_the_host_is_asked_for_hardware_virtualization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "DEVICES", ("/dev/null", str(tmp_path / "vhost-net")))
    monkeypatch.setattr(plugin, "HARDWARE_KVM", (str(tmp_path / "kvm_amd"),))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert plugin.lacking() == [str(tmp_path / "vhost-net"), "VT-x or SVM under KVM"]

    (tmp_path / "vhost-net").touch()
    (tmp_path / "kvm_amd").touch()
    assert plugin.lacking() == []
