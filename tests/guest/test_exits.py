"""virtiopy exits, as a user has it, on this machine's KVM."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.support import (
    assert_one_sentence,
    make_image,
    needs_kvm,
    needs_qemu,
    run_in_qemu,
    virtiopy,
)
from tests.namespace import Namespace, needs_taps
from tests.patience import timed

PACKETS = 300
REQUESTS = 40


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def compare(
    tmp_path: Path,
    *arguments: str | Path,
    modes: str = "trapped,ioeventfd",
    exit_free: str = "off",
) -> dict[str, Any]:
    """Run `virtiopy exits` and return what it found, by mode where each is there once."""
    path = tmp_path / "exits.json"
    options = ("--json", path, "--modes", modes, "--exit-free", exit_free)
    done = virtiopy("exits", *options, *arguments)
    assert done.status == 0, done.errors
    document: dict[str, Any] = json.loads(path.read_text())
    document["by_mode"] = {mode["mode"]: mode["measured"] for mode in document["modes"]}
    return document


def tap(namespace: Namespace) -> str:
    return f"tap=t0,create=on,netns={namespace.name}"


def register(measured: dict[str, Any], name: str) -> int:
    return sum(row["count"] for row in measured["registers"] if row["register"] == name)


@needs_kvm
@needs_taps
@pytest.mark.parametrize("direction", ["send", "receive"])
def test_a_packet_costs_one_queue_notify_exit_when_trapped_and_none_by_ioeventfd(
    tmp_path: Path, namespace: Namespace, direction: str
) -> None:
    arguments = ("--packets", str(PACKETS), "--direction", direction)
    document = compare(tmp_path, "--net", tap(namespace), *arguments)
    trapped, ioeventfd = document["by_mode"]["trapped"], document["by_mode"]["ioeventfd"]

    assert trapped["requests"] == ioeventfd["requests"] == PACKETS
    assert trapped["kicks"] + trapped["kicks_suppressed"] == PACKETS
    assert register(trapped, "QueueNotify") == trapped["kicks"] == PACKETS
    assert trapped["per_request"]["queue_notify_exits"] == 1
    assert register(ioeventfd, "QueueNotify") == 0
    assert ioeventfd["kicks"] + ioeventfd["kicks_suppressed"] == PACKETS


@needs_kvm
@needs_taps
@pytest.mark.parametrize("direction", ["send", "receive"])
def test_without_exits_for_registers_a_packet_costs_none_by_ioeventfd(
    tmp_path: Path, namespace: Namespace, direction: str
) -> None:
    arguments = ("--net", tap(namespace), "--packets", str(PACKETS), "--direction", direction)
    measured = compare(tmp_path, *arguments, modes="trapped,ioeventfd,vhost-user", exit_free="on")[
        "by_mode"
    ]

    assert measured["ioeventfd"]["userspace_exits"] == 0
    assert measured["vhost-user"]["userspace_exits"] == 0
    # The interrupt line is a level there, which its acknowledgement lowers.
    trapped = measured["trapped"]
    assert register(trapped, "QueueNotify") == register(trapped, "InterruptACK") == PACKETS
    assert trapped["userspace_exits"] == 2 * PACKETS


@needs_kvm
def test_registers_of_either_kind_are_compared(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    document = compare(tmp_path, "--disk", image, "--requests", "20", exit_free="both")

    found = [(mode["mode"], mode["exit_free"]) for mode in document["modes"]]
    assert found == [(m, free) for m in ("trapped", "ioeventfd") for free in (False, True)]
    exits = [mode["measured"]["userspace_exits"] for mode in document["modes"]]
    assert exits[1] < exits[0] == 3 * 20
    assert exits[3] == 0 < exits[2]


@needs_kvm
@needs_taps
def test_set_up_is_not_counted(tmp_path: Path, namespace: Namespace) -> None:
    document = compare(tmp_path, "--net", tap(namespace), "--packets", "10")

    for measured in document["by_mode"].values():
        assert {row["register"] for row in measured["registers"]} <= {
            *("QueueNotify", "InterruptStatus", "InterruptACK"),
        }


@needs_kvm
@needs_taps
def test_a_batch_costs_one_kick(tmp_path: Path, namespace: Namespace) -> None:
    arguments = ("--net", tap(namespace), "--packets", "62", "--depth", "4")
    trapped = compare(tmp_path, *arguments, modes="trapped")["by_mode"]["trapped"]

    # The last batch is half of one.
    assert register(trapped, "QueueNotify") == 16
    assert trapped["requests"] == 62


@needs_kvm
def test_the_kernels_counts_agree_with_ours(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    document = compare(tmp_path, "--disk", image, "--requests", str(REQUESTS))

    for measured in document["by_mode"].values():
        kernel, ours = measured["kernel"], measured["userspace_exits"]
        assert kernel["mmio_exits"] == ours
        assert kernel["exits"] >= ours
        exits = [found for found in measured["differences"] if found["what"] == "exits"]
        assert [sum(part["count"] for part in found["parts"]) for found in exits] == [
            kernel["exits"] - ours
        ]


@needs_kvm
def test_the_time_of_each_thread_is_part_of_the_whole(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    measured = compare(tmp_path, "--disk", image, "--requests", "100")["by_mode"]

    for mode, each in measured.items():
        spent = each["cpu_seconds"]
        assert 0 < spent["vcpu"] <= each["seconds"] * 1.01
        assert (spent["loop"] > 0) == (mode == "ioeventfd")
        assert spent["vhost"] == 0


@needs_kvm
def test_a_disk_is_read_and_not_written(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    document = compare(tmp_path, "--disk", image, "--requests", str(REQUESTS))

    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
    assert document["workload"] == {
        "device": "blk",
        "unit": "read",
        "what": "of 4 KiB",
        "requests": REQUESTS,
        "depth": 1,
        "command": None,
    }
    trapped = document["by_mode"]["trapped"]
    assert register(trapped, "QueueNotify") == trapped["requests"] == REQUESTS


@needs_kvm
def test_a_read_only_image_will_do(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    image.chmod(0o444)

    assert compare(tmp_path, "--disk", image, "--requests", "5")["modes"]


@needs_kvm
def test_each_mode_is_told_as_it_is_done(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    done = virtiopy("exits", "--disk", image, "--requests", "5", "--modes", "trapped,ioeventfd")

    lines = [line.split(":")[1].strip() for line in done.errors.splitlines()]
    assert lines == ["trapped", "trapped exit-free", "ioeventfd", "ioeventfd exit-free"]
    assert max(map(len, done.output.splitlines())) <= 80


@needs_kvm
@needs_qemu
def test_a_host_that_does_not_measure_ignores_the_marks(tmp_path: Path) -> None:
    drive = f"if=none,id=d,file={make_image(tmp_path / 'disk.img')},format=raw"
    run_in_qemu(
        "blk",
        "-drive",
        drive,
        "-device",
        "virtio-blk-device,drive=d",
        append="blk.requests=20 blk.depth=4",
    )


@needs_kvm
@needs_qemu
def test_the_measured_driver_sends_with_qemus_device_too(tmp_path: Path) -> None:
    network = ("-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n")
    run_in_qemu("net", *network, append="net.mode=measure net.frames=20 net.depth=4")


def test_without_kvm_the_kernels_counts_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("unicorn", reason="the extra `tcg` is not installed")
    image = make_image(tmp_path / "disk.img")
    arguments = ("--disk", image, "--requests", "10", "--accel", "tcg")
    document = compare(tmp_path, *arguments, exit_free="both")

    assert document["accelerator"] == "tcg"
    trapped, without, *_ = document["modes"]
    assert trapped["measured"]["kernel"] is None
    assert register(trapped["measured"], "QueueNotify") == 10
    assert (without["exit_free"], without["measured"]) == (True, None)
    assert "no registers without exits on tcg" in without["missing"]


@needs_kvm
def test_a_mode_that_a_device_lacks_is_a_row_that_says_why(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    document = compare(tmp_path, "--disk", image, "--requests", "5", modes="vhost,trapped")

    vhost, trapped = document["modes"]
    assert (vhost["mode"], vhost["measured"]) == ("vhost", None)
    assert "block device" in vhost["missing"]
    assert trapped["missing"] is None


@needs_kvm
@timed
def test_native_mode_leaves_the_loop_out(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    arguments = ("--disk", image, "--requests", "2000")
    document = compare(tmp_path, *arguments, modes="ioeventfd,native", exit_free="on")

    ioeventfd, native = (mode["measured"] for mode in document["modes"])
    assert native["userspace_exits"] == 0
    assert ioeventfd["userspace_exits"] == 0
    # What the loop does in native mode is done once; in ioeventfd mode, for each of the requests.
    assert native["cpu_seconds"]["loop"] < 0.5 * ioeventfd["cpu_seconds"]["loop"]


@needs_kvm
@needs_taps
@pytest.mark.skipif(Path("/dev/vhost-net").exists(), reason="this host has /dev/vhost-net")
def test_a_mode_that_the_host_lacks_is_a_row_that_says_why(
    tmp_path: Path, namespace: Namespace
) -> None:
    page = tmp_path / "exits.html"
    arguments = ("--net", tap(namespace), "--packets", "20", "--html", page)
    document = compare(tmp_path, *arguments, modes="trapped,ioeventfd,vhost")

    assert "/dev/vhost-net does not exist" in document["modes"][2]["missing"]
    assert "/dev/vhost-net does not exist" in page.read_text()


def test_where_nothing_can_be_measured_it_is_an_error(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")

    assert_one_sentence(virtiopy("exits", "--disk", image, "--modes", "vhost"), "No mode")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--net", "--disk"]),
        (
            ["--net", "tap=t0", "--disk", "IMAGE"],
            ["give one of --disk, --net, --share, --fs, --scsi, --vsock, once"],
        ),
        (["--disk", "IMAGE", "--packets", "5"], ["--packets", "--requests"]),
        (
            ["--disk", "IMAGE", "--direction", "send"],
            ["--direction send is not for --disk", "leave it out"],
        ),
        (["--scsi", "disk=IMAGE", "--depth", "43"], ["--depth 43", "42 or less"]),
        (["--net", "tap=t0", "--requests", "5"], ["--requests", "--packets"]),
        (["--disk", "IMAGE", "--modes", "trapped,polling"], ["polling", "ioeventfd"]),
        (["--disk", "IMAGE", "--modes", "trapped,trapped"], ["twice"]),
        (["--disk", "IMAGE", "--modes", ""], ["--modes", "trapped"]),
        (["--disk", "IMAGE,mode=trapped"], ["--modes"]),
        (["--net", "tap=t0,vhost=on"], ["vhost=", "--modes"]),
        (["--disk", "vhost-user=/run/x.sock"], ["vhost-user", "name what it serves"]),
        (["--disk", "absent.img"], ["absent.img"]),
        (["--disk", "IMAGE", "--json", "absent/exits.json"], ["absent/exits.json"]),
        (["--disk", "IMAGE", "--html", "absent/exits.html"], ["absent/exits.html"]),
        (["--net", ""], ["tap"]),
        (["--disk", "IMAGE", "--requests", "100000", "--timeout", "0.2"], ["--timeout"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_option_ends_in_one_sentence(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    image = make_image(tmp_path / "disk.img")
    outcome = virtiopy("exits", *(a.replace("IMAGE", str(image)) for a in arguments))

    assert_one_sentence(outcome, *words)


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    for option, value in (("--depth", "0"), ("--depth", "129"), ("--requests", "0")):
        outcome = virtiopy("exits", "--disk", make_image(tmp_path / "disk.img"), option, value)
        assert outcome.status == 2
        assert option in outcome.errors


@needs_kvm
@timed
def test_a_backend_of_its_own_works_the_rings_in_vhost_user_mode(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    before = image.read_bytes()
    arguments = ("--disk", image, "--requests", "40")
    document = compare(tmp_path, *arguments, modes="ioeventfd,vhost-user")
    ioeventfd, served = (document["by_mode"][mode] for mode in ("ioeventfd", "vhost-user"))

    assert register(served, "QueueNotify") == 0
    assert served["requests"] == served["kicks"] + served["kicks_suppressed"] == 40
    assert served["cpu_seconds"]["backend"] > 0
    assert served["cpu_seconds"]["loop"] < ioeventfd["cpu_seconds"]["loop"]
    assert ioeventfd["cpu_seconds"]["backend"] == 0
    assert image.read_bytes() == before


@needs_kvm
@needs_taps
@pytest.mark.parametrize("direction", ["send", "receive"])
def test_packets_pass_through_a_backend_of_its_own(
    tmp_path: Path, namespace: Namespace, direction: str
) -> None:
    arguments = ("--net", tap(namespace), "--packets", "50", "--direction", direction)
    served = compare(tmp_path, *arguments, modes="vhost-user")["by_mode"]["vhost-user"]

    assert served["requests"] == 50
    assert register(served, "QueueNotify") == 0


def test_a_backend_that_does_not_start_says_why(tmp_path: Path) -> None:
    outcome = virtiopy("exits", "--disk", "absent.img", "--modes", "vhost-user")

    assert_one_sentence(outcome, "backend does not start", "absent.img")


def test_a_report_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.img")
    outcome = virtiopy("exits", "--disk", image, "--json", tmp_path / "absent" / "exits.json")

    assert outcome.output == ""


def test_an_old_report_is_kept_when_nothing_can_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    path.write_text("old")

    assert virtiopy("exits", "--disk", "absent.img", "--json", path).status == 2
    assert path.read_text() == "old"


def test_a_page_without_the_plotting_library_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "matplotlib.py").write_text("raise ImportError('No module named matplotlib')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    image = make_image(tmp_path / "disk.img")

    assert_one_sentence(
        virtiopy("exits", "--disk", image, "--html", tmp_path / "exits.html"),
        *("matplotlib", "virtiopy[plots]"),
    )


@needs_kvm
def test_a_disk_is_compared_in_the_modes_that_a_disk_can_have(tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    image = make_image(tmp_path / "disk.img")
    options = ("--requests", "5", "--exit-free", "off", "--json", path)
    assert virtiopy("exits", "--disk", image, *options).status == 0
    modes = [row["mode"] for row in json.loads(path.read_text())["modes"]]
    assert modes == ["trapped", "ioeventfd", "native", "vhost-user"]


@needs_kvm
def test_a_native_threads_time_is_told_apart(tmp_path: Path) -> None:
    arguments = ("--disk", make_image(tmp_path / "disk.img"), "--requests", "200")
    found = compare(tmp_path, *arguments, modes="ioeventfd,native")["by_mode"]
    assert found["ioeventfd"]["cpu_seconds"]["native"] == 0
    assert found["native"]["cpu_seconds"]["native"] > 0
    assert found["native"]["cpu_seconds"]["vhost"] == 0
    assert found["native"]["cpu_seconds"]["backend"] == 0


@needs_kvm
def test_each_plot_is_written_as_png_and_as_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing")
    folder = tmp_path / "plots"
    arguments = ("--disk", make_image(tmp_path / "disk.img"), "--requests", "5")
    for _ in range(2):  # what is ours is replaced
        compare(tmp_path, *arguments, "--plots", folder)
    names = {path.name for path in folder.iterdir()}
    plots = {"compare-userspace", "compare-kernel", "compare-time", "mode-trapped"}
    plots |= {"mode-ioeventfd"}
    assert names == {f"{plot}.{form}" for plot in plots for form in ("svg", "png")}
    for path in folder.iterdir():
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else start[:5] == b"<?xml"


@needs_kvm
def test_a_file_of_the_users_among_the_plots_stays(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing")
    theirs = tmp_path / "mode-trapped.png"
    theirs.write_text("a holiday")
    outcome = virtiopy(
        *("exits", "--disk", make_image(tmp_path / "disk.img"), "--requests", "5"),
        *("--modes", "trapped", "--exit-free", "off", "--plots", tmp_path),
    )
    assert outcome.status == 2
    assert "would replace a file that virtiopy did not make" in outcome.errors
    assert theirs.read_text() == "a holiday"


def test_a_folder_for_plots_that_cannot_be_made_is_told_before_the_guest_runs(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing")
    image = make_image(tmp_path / "disk.img")
    outcome = virtiopy("exits", "--disk", image, "--plots", tmp_path / "no" / "folder")
    assert_one_sentence(outcome, "cannot be made", "name another")
