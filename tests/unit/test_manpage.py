"""The man page, which is made from the help."""

import shutil
import subprocess

import click
import pytest

from virtiopy.cli.main import SUBCOMMANDS, cli
from virtiopy.cli.manpage import man_page


@pytest.fixture(scope="module")
def page() -> str:
    return man_page(cli, click.Context(cli, info_name="virtiopy"))


def test_the_page_has_every_subcommand_and_its_options(page: str) -> None:
    for name in SUBCOMMANDS:
        assert f'.SH "VIRTIOPY {name.upper()}"' in page
    assert "\\fB\\-\\-plots FOLDER\\fR" in page
    assert "\n  virtiopy exits \\-\\-net tap=t0,create=on\n" in page


def test_man_has_no_complaint_about_it(page: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is missing")
    command = ["groff", "-man", "-ww", "-z", "-Tutf8"]
    done = subprocess.run(command, input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_line_is_taken_for_a_request_of_roffs(page: str) -> None:
    known = {".TH", ".SH", ".B", ".TP", ".PP", ".nf", ".fi", ".na", ".ad"}
    assert {line.split()[0] for line in page.splitlines() if line.startswith(".")} == known
