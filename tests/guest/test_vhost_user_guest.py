"""The VM's devices, in other processes: virtiopy serve, and qemu-storage-daemon."""

import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.guest.support import (
    QEMU,
    VIRTIOPY,
    assert_one_sentence,
    final_pattern,
    holds_final_pattern,
    make_image,
    needs_kvm,
    run_guest,
    run_in_qemu,
    virtiopy,
)
from tests.guest.vhost_user import (
    Backend,
    needs_storage_daemon,
    serve,
    serve_by_qemu,
)
from tests.namespace import Namespace, needs_taps
from tests.patience import PATIENCE

pytestmark = needs_kvm

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is missing")

#: Memory that QEMU shares with a backend.
SHARED = [
    *("-m", "256M", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"),
    *("-machine", "memory-backend=ram"),
]


def chardev(name: str, path: Path) -> list[str]:
    return ["-chardev", f"socket,id={name},path={path}"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.mark.parametrize("queues", [1, 4])
def test_the_blk_guest_passes_on_a_disk_that_is_served(
    tmp_path: Path, image: Path, queues: int
) -> None:
    path = tmp_path / "blk.sock"
    with serve("blk", f"{image},queues={queues}", path):
        outcome = run_guest(tmp_path, "blk", "--disk", f"vhost-user={path}")

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 100
    assert outcome.exits("blk0", "QueueNotify") == 0
    assert holds_final_pattern(image)


@needs_qemu
@pytest.mark.parametrize("queues", [1, 4])
def test_the_blk_guest_passes_in_qemu_on_a_disk_that_is_served(
    tmp_path: Path, image: Path, queues: int
) -> None:
    path = tmp_path / "blk.sock"
    device = f"vhost-user-blk,chardev=blk,num-queues={queues}"
    with serve("blk", f"{image},queues={queues}", path):
        run_in_qemu("blk", *SHARED, *chardev("blk", path), "-device", device)

    assert holds_final_pattern(image)


@needs_qemu
@needs_taps
@pytest.mark.parametrize("pairs", [1, 3])
def test_the_net_guest_passes_in_qemu_on_a_device_that_is_served(
    tmp_path: Path, pairs: int
) -> None:
    path = tmp_path / "net.sock"
    with Namespace() as namespace:
        tap = f"tap=t0,create=on,netns={namespace.name},address=192.0.2.1/24,queues={pairs}"
        with serve("net", tap, path):
            netdev = f"vhost-user,id=net,chardev=net,queues={pairs}"
            device = "virtio-net-device,netdev=net,mq=on"
            run_in_qemu("net", *SHARED, *chardev("net", path), "-netdev", netdev, "-device", device)


@needs_qemu
def test_the_rng_guest_passes_in_qemu_on_a_device_that_is_served(tmp_path: Path) -> None:
    path = tmp_path / "rng.sock"
    with serve("rng", "", path):
        run_in_qemu("rng", *SHARED, *chardev("rng", path), "-device", "vhost-user-rng,chardev=rng")


def sample(image: Path, path: Path) -> Backend:
    """Serve an image as QEMU's sample backend does."""
    command = [sys.executable, "-m", "tests.guest.sample_backend", str(image), str(path)]
    return Backend(command, path)


def test_the_blk_guest_passes_on_a_disk_like_qemus_sample(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "blk.sock"
    with sample(image, path) as backend:
        outcome = run_guest(
            tmp_path, "blk", "--disk", f"vhost-user={path}", "--append", "blk.libvhost-user=1"
        )
        assert backend.process.wait(PATIENCE) == 0, backend.output

    assert backend.output == "the frontend left\n"
    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) >= 100
    assert holds_final_pattern(image)


@needs_qemu
def test_the_blk_guest_passes_in_qemu_on_a_disk_like_qemus_sample(
    tmp_path: Path, image: Path
) -> None:
    """QEMU is who the backend was made for: what it does is the sample's, not what suits us."""
    path = tmp_path / "blk.sock"
    with sample(image, path) as backend:
        device = "vhost-user-blk,chardev=blk,num-queues=2"
        words = "blk.libvhost-user=1"
        run_in_qemu("blk", *SHARED, *chardev("blk", path), "-device", device, append=words)
        assert backend.process.wait(PATIENCE) == 0, backend.output

    assert backend.output == "the frontend left\n"
    assert holds_final_pattern(image)


@needs_storage_daemon
def test_the_blk_guest_passes_on_qemus_export(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "blk.sock"
    with serve_by_qemu(image, path):
        outcome = run_guest(
            tmp_path, "blk", "--disk", f"vhost-user={path}", "--append", "blk.libvhost-user=1"
        )

    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert len(outcome.report["tests"]) > 100
    assert holds_final_pattern(image)


@needs_storage_daemon
def test_the_blk_guest_passes_on_a_qcow2_of_qemus(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.qcow2", tmp_path / "blk.sock"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M"], check=True)
    with serve_by_qemu(image, path, "qcow2"):
        outcome = run_guest(
            tmp_path, "blk", "--disk", f"vhost-user={path}", "--append", "blk.libvhost-user=1"
        )

    assert outcome.failures() == []
    raw = tmp_path / "raw.img"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True)
    assert raw.read_bytes()[: len(final_pattern())] == final_pattern()


@pytest.mark.parametrize(
    "append",
    ["", pytest.param("blk.requests=20000", marks=pytest.mark.nightly)],
    ids=["tests", "reads"],
)
def test_a_backend_that_is_killed_again_and_again_loses_nothing(
    tmp_path: Path, image: Path, append: str
) -> None:
    path = tmp_path / "blk.sock"
    with serve("blk", str(image), path) as backend:
        done = threading.Event()
        kills = 0

        def kill_often() -> None:
            nonlocal kills
            while kills < 20:
                # Not before the VM has found it, so that each kill is a reconnect.
                while backend.output.count("a frontend is here") <= kills:
                    if done.wait(0.005):
                        return
                if done.wait(0.03):
                    return
                backend.kill()
                kills += 1
                backend.restart()

        killer = threading.Thread(target=kill_often)
        killer.start()
        try:
            outcome = run_guest(
                tmp_path,
                *("blk", "--disk", f"vhost-user={path}", "--timeout", "90", "--append", append),
            )
        finally:
            done.set()
            killer.join()

    assert outcome.status == 0, outcome.output + outcome.errors
    assert outcome.failures() == []
    assert kills > 1
    (disk,) = outcome.report["devices"]
    # One that is killed before it has said what it offers does not count.
    assert 1 < disk["facts"]["reconnects"] <= kills
    if not append:
        assert holds_final_pattern(image)


def test_a_backend_that_left_for_good_is_named_when_time_is_up(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "blk.sock"
    with serve("blk", str(image), path) as backend:
        counters = Path("/proc", str(backend.process.pid), "io")
        done = threading.Event()

        def kill() -> None:
            """Kill it when a guest reads from it."""
            while "a frontend is here" not in backend.output:
                if done.wait(0.01):
                    return
            begin = bytes_read(counters)
            while bytes_read(counters) < begin + (256 << 10):
                if done.wait(0.01):
                    return
            backend.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            outcome = run_guest(
                tmp_path,
                *("blk", "--disk", f"vhost-user={path}", "--timeout", "10"),
                *("--append", "blk.requests=1000000000"),
            )
        finally:
            done.set()
            killer.join()
    assert outcome.status == 2
    assert re.search(
        r"virtiopy: The guest was not done after 10 seconds: the vhost-user backend of blk0 left "
        r"\d+\.\d seconds before that: start it again",
        outcome.errors,
    )


def bytes_read(counters: Path) -> int:
    found = re.search(r"^rchar: (\d+)$", counters.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_sigterm_completes_what_is_in_flight_and_takes_the_socket_away(
    tmp_path: Path, image: Path
) -> None:
    path = tmp_path / "blk.sock"
    backend = serve("blk", str(image), path)
    backend.close()
    assert backend.process.returncode == 0
    assert not path.exists()
    assert "ready at" in backend.output


def test_a_device_is_served_at_a_socket_that_is_open_already(tmp_path: Path, image: Path) -> None:
    """And another is when that one has ended: the socket is not its own to remove."""
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        for _ in range(2):
            process = subprocess.Popen(
                [*VIRTIOPY, "serve", "blk", str(image), "--socket-fd", str(fd)], pass_fds=[fd]
            )
            try:
                outcome = run_guest(tmp_path, "probe", "--disk", f"vhost-user={path}")
            finally:
                process.terminate()
            assert process.wait() == 0
            assert outcome.status == 0, outcome.errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--disk", "vhost-user=nobody.sock"], ["nobody.sock", "virtiopy serve"]),
        (["run", "--disk", "vhost-user=nobody.sock,cache=none"], ["cache"]),
        (["run", "--net", "vhost-user=nobody.sock,tap=tap0"], ["tap"]),
        (["serve", "blk", "disk.img"], ["--socket"]),
        (["serve", "blk", "missing.img", "--socket", "s.sock"], ["missing.img"]),
        (["serve", "blk", "vhost-user=x.sock", "--socket", "s.sock"], ["served already"]),
        (["serve", "rng", "mode=trapped", "--socket", "s.sock"], ["mode="]),
        (["serve", "rng", "--socket-fd", "0"], ["descriptor 0"]),
        (["serve", "rng", "--socket-fd", "9" * 20], ["descriptor 9", "is no socket"]),
        (["serve", "rng", "--socket", "/nowhere/at/all.sock"], ["/nowhere/at/all.sock"]),
    ],
)
def test_a_fault_of_the_users_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(virtiopy(*arguments), *words)


def test_it_does_not_serve_in_place_of_a_file(tmp_path: Path, image: Path) -> None:
    assert_one_sentence(virtiopy("serve", "rng", "--socket", image), "is no socket")
    assert image.stat().st_size == 4 << 20


def test_two_do_not_serve_at_one_socket(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "rng.sock"
    with serve("rng", "", path):
        assert_one_sentence(virtiopy("serve", "rng", "--socket", path), "already")
