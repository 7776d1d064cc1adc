"""Folders that are to be shared, as users name them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiopy.errors import ConfigError
from virtiopy.host.folders import check_folder

NOBODY = 65534


def said_to_nobody(folder: Path) -> str:
    """Return what another user than root is told of a folder."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(NOBODY)
            check_folder(folder, "The share")
            os.write(tell, b"nothing")
        except ConfigError as error:
            os.write(tell, str(error).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(pid, 0)
    with open(told, encoding="utf-8") as said:
        return said.read()


@pytest.fixture
def folder() -> Iterator[Path]:
    # Other users can search what pytest's own folders do not lie in.
    with tempfile.TemporaryDirectory(prefix="virtiopy-") as name:
        folder = Path(name, "above", "folder")
        folder.mkdir(parents=True)
        for path in (folder, *folder.parents[:2]):
            path.chmod(0o755)
        yield folder


def test_a_folder_that_can_be_read_will_do(folder: Path) -> None:
    check_folder(folder, "The share")


@pytest.mark.parametrize("name", ["missing", "file", "file/folder"])
def test_what_is_no_folder_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"The share .*{name} is no folder: name one that is"):
        check_folder(tmp_path / name, "The share")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
@pytest.mark.parametrize("closed", [0, 1], ids=["itself", "above"])
def test_a_folder_that_the_user_may_not_read_is_said(folder: Path, closed: int) -> None:
    assert said_to_nobody(folder) == "nothing"
    [folder, folder.parent][closed].chmod(0o700)
    assert said_to_nobody(folder) == (f"The share {folder} cannot be read: name a folder that can.")
