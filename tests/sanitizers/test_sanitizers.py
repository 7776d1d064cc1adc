"""The C part under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys

import pytest

from tests.sanitizers.build import build_library, runtime
from tests.sanitizers.paths import ROOT

#: The unit tests that give C the rings of drivers and frontends that are not to be trusted.
UNIT_TESTS = [
    "test_native_queue.py",
    "test_worker.py",
    "test_blk_native.py",
    "test_net_native.py",
    "test_vhost_user_lost_memory.py",
    "test_vhost_user_bad_memory.py",
]

#: Tests of how little an idle thread costs: with sanitizers everything costs more.
NOT_HERE = "not idle_thread and not one_system_call"


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose C part has the sanitizers."""
    build_library()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": f"{runtime('libasan')} {runtime('libubsan')}",
        # Python leaks by design; lost memory of a peer's is SIGBUS, which is ours to handle.
        "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Each of its objects is a block of the heap, with what is forbidden around it.
        "PYTHONMALLOC": "malloc",
        "HYPOTHESIS_PROFILE": "normal",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def suite(*arguments: str) -> str:
    """Run pytest over the build with sanitizers, to its good end; returns what it says."""
    done = sanitized("-m", "pytest", "-p", "tests.sanitizers.plugin", *arguments)
    assert "C part: " in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rings_of_bad_drivers_are_worked_without_a_wrong_access() -> None:
    tests = [f"tests/unit/{name}" for name in UNIT_TESTS]
    said = suite("-k", NOT_HERE, "-p", "no:cacheprovider", "-rN", *tests)
    assert " passed" in said


@pytest.mark.parametrize("device", ["blk", pytest.param("net", marks=pytest.mark.nightly)])
def test_the_hostile_driver_is_served_without_a_wrong_access(device: str) -> None:
    # What it does to a queue is the same for every device: once is enough.
    acts = "hostile" if device == "blk" else "hostile and test_net"
    said = suite(
        *("--pyargs", "virtiopy.conformance", "-k", acts, "-p", "no:cacheprovider", "-rN"),
        f"--virtio-target=python:tests.sanitizers.targets:{device}",
        "--virtio-transport=vhost-user",
    )
    assert " passed" in said


def test_a_wrong_access_of_the_c_part_ends_the_run() -> None:
    # Two bytes that lie beside a block of the heap.
    code = (
        "import tests.sanitizers.plugin\n"
        "from virtiopy._native import ffi, lib\n"
        "block = ffi.new('char[64]')\n"
        "lib.vp_load_acquire(ffi.cast('uint16_t *', block + 64))\n"
    )
    done = sanitized("-c", code)
    assert "heap-buffer-overflow" in done.stderr
    assert done.returncode != 0
