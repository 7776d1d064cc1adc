import json
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.guest.support import assert_one_sentence, make_image, needs_kvm, run_guest, virtiopy
from virtiopy import __version__


def test_help_lists_every_subcommand() -> None:
    outcome = virtiopy("--help")
    assert outcome.status == 0
    for name in ("run", "hello", "doctor"):
        assert name in outcome.output


@pytest.mark.parametrize("subcommand", ["run", "hello", "doctor"])
def test_the_help_of_a_subcommand_has_an_example(subcommand: str) -> None:
    outcome = virtiopy(subcommand, "--help")
    assert outcome.status == 0
    assert "Example:" in outcome.output
    assert f"virtiopy {subcommand}" in outcome.output.partition("Example:")[2]


def test_the_version_is_the_packages() -> None:
    assert virtiopy("--version").output == f"virtiopy, version {__version__}\n"


def test_an_unknown_subcommand_is_status_2_without_a_traceback() -> None:
    outcome = virtiopy("fly")
    assert outcome.status == 2
    assert "Traceback" not in outcome.errors


def test_doctor_has_a_remedy_for_all_that_does_not_work() -> None:
    outcome = virtiopy("doctor", "--json")
    assert outcome.status == 0
    findings = json.loads(outcome.output)
    assert {"/dev/kvm", "/dev/vhost-net", "/dev/net/tun", "QEMU"} <= {f["what"] for f in findings}
    assert all(f["remedy"] for f in findings if f["works"] is False)


def test_doctor_draws_a_table_for_people() -> None:
    outcome = virtiopy("doctor")
    assert outcome.status == 0
    assert "Remedy" in outcome.output


@needs_kvm
@pytest.mark.parametrize(
    "command",
    [
        ("-v", "run", "--guest", "greet", "--rng"),
        ("run", "-v", "--guest", "greet", "--rng"),
        ("run", "--guest", "greet", "--rng", "--verbose"),
    ],
)
def test_verbose_tells_where_devices_are_wherever_it_stands(command: tuple[str, ...]) -> None:
    outcome = virtiopy(*command)
    assert outcome.status == 0
    where = "rng0: registers at 0xd0000000, interrupt line (GSI) 16, ioeventfd mode"
    assert f"INFO virtiopy.vm.slots: {where}" in outcome.errors


@needs_kvm
def test_without_verbose_nothing_is_told() -> None:
    assert virtiopy("run", "--guest", "greet", "--rng").errors == ""


@needs_unicorn
@pytest.mark.parametrize(
    ("options", "modes"),
    [
        ((), ["trapped", "trapped"]),
        (("--mode", "ioeventfd"), ["ioeventfd", "ioeventfd"]),
    ],
)
def test_devices_of_the_software_cpu_are_worked_by_its_own_thread_unless_said_otherwise(
    tmp_path: Path, options: tuple[str, ...], modes: list[str]
) -> None:
    image = make_image(tmp_path / "disk.img")
    outcome = run_guest(tmp_path, "greet", "--accel", "tcg", "--disk", image, "--rng", *options)
    assert outcome.status == 0
    assert [device["mode"] for device in outcome.report["devices"]] == modes


@needs_kvm
def test_a_path_with_a_comma_is_written_with_two(tmp_path: Path) -> None:
    image = make_image(tmp_path / "a,b.img")
    told = virtiopy("run", "--guest", "greet", "--disk", image)
    assert_one_sentence(told, "does not know 'b.img'", "written twice")
    outcome = virtiopy("run", "--guest", "greet", "--disk", str(image).replace(",", ",,"))
    assert outcome.status == 0, outcome.errors
