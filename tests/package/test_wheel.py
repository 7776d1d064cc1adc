"""The source distribution, the wheel that is built from it, and an installation of that."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.guest.support import greeting, needs_kvm
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
#: Where dependencies are: the wheel alone is installed.
LIBRARIES = Path(pytest.__file__).parents[1]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    script = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return archive.with_suffix("").with_suffix("")


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    subprocess.run([*PIP, "wheel", *options, str(sources)], check=True)
    (made,) = folder.glob("*.whl")
    return made


def tracked(*folders: str) -> set[str]:
    """The files of these folders that git knows."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("git or its repository is missing")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_source_distribution_is_complete(sources: Path) -> None:
    names = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    hidden = {name for name in tracked() if name.startswith(".")}
    assert tracked() - hidden - names == set()


def test_the_source_distribution_has_nothing_that_was_built(sources: Path) -> None:
    built = {path.suffix for path in sources.rglob("*")} & {".so", ".elf", ".o", ".pyc"}
    assert built == set()


def test_the_wheel_has_the_package_its_library_and_the_guests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {path.name for path in (ROOT / "virtiopy" / "guests").glob("*.elf")}
    assert tracked("virtiopy") - names == set()
    assert "virtiopy/_native/_lib.abi3.so" in names
    assert {f"virtiopy/guests/{name}" for name in sources} <= names
    assert any(name.endswith("share/doc/virtiopy/exits.md") for name in names)


def test_one_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    assert re.fullmatch(r"virtiopy-[\d.]+-cp311-abi3-manylinux_2_\d+_x86_64\.whl", wheel.name)


def test_the_tag_is_what_auditwheel_finds(wheel: Path) -> None:
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r'platform tag:\s+"(\w+)"', shown)
    assert found is not None, shown
    assert wheel.name.endswith(f"-{found[1]}.whl")


def interpreter(version: str) -> Path:
    """A Python of this version, as PATH or pyenv has it."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = list(pyenv.glob(f"versions/{version}.*/bin/python"))
    if found := shutil.which(f"python{version}"):
        candidates.insert(0, Path(found))
    for path in candidates:
        # pyenv has a name in PATH for versions, too, that are not chosen.
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip(f"Python {version} is missing")


def installed(wheel: Path, python: Path, folder: Path, *options: str) -> Path:
    """Install the wheel in an environment of its own."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", *PIP[1:], "install", *options, wheel]
    subprocess.run(list(map(str, command)), check=True)
    return folder / "bin"


def said(programs: Path, *arguments: str, folder: Path, **more: str) -> str:
    """What a command of an installation prints, away from the sources."""
    done = subprocess.run(
        [str(programs / arguments[0]), *arguments[1:]],
        cwd=folder,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation for this Python, which finds the dependencies in this environment."""
    folder = tmp_path_factory.mktemp("installation") / "venv"
    programs = installed(wheel, Path(sys.executable), folder, "--no-deps", "--no-index")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{LIBRARIES}\n")
    return programs


@needs_kvm
def test_an_installation_runs_guests_of_its_own(programs: Path, tmp_path: Path) -> None:
    script = "import virtiopy; print(virtiopy.__file__)"
    assert str(programs.parent) in said(programs, "python", "-c", script, folder=tmp_path)
    hello = said(programs, "virtiopy", "hello", "--mode", "long", folder=tmp_path)
    assert hello == greeting("long")
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    arguments = ("run", "--guest", "blk", "--disk", "disk.img")
    assert "not ok" not in said(programs, "virtiopy", *arguments, folder=tmp_path)


def test_the_package_can_be_called(programs: Path, tmp_path: Path) -> None:
    arguments = ("python", "-m", "virtiopy", "--version")
    assert said(programs, *arguments, folder=tmp_path).startswith("virtiopy, version ")


def test_the_pages_that_the_help_names_are_installed(programs: Path, tmp_path: Path) -> None:
    named = set()
    for command in ("exits", "serve"):
        shown = said(programs, "virtiopy", command, "--help", folder=tmp_path)
        named |= set(re.findall(r"\b([\w-]+\.md)\b", shown))
    assert named == {"exits.md", "vhost-user.md"}
    assert all((programs.parent / "share/doc/virtiopy" / page).exists() for page in named)


def test_a_shell_completes_subcommands_and_options(programs: Path, tmp_path: Path) -> None:
    script = said(programs, "virtiopy", folder=tmp_path, _VIRTIOPY_COMPLETE="bash_source")
    assert "complete " in script
    asked = {"_VIRTIOPY_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    asked["COMP_WORDS"] = "virtiopy exits --pl"
    assert said(programs, "virtiopy", folder=tmp_path, **asked) == "plain,--plots\n"


@needs_kvm
@pytest.mark.parametrize("version", [pytest.param("3.12", marks=pytest.mark.nightly), "3.13"])
def test_the_wheel_runs_on_later_pythons(wheel: Path, version: str, tmp_path: Path) -> None:
    programs = installed(wheel, interpreter(version), tmp_path / "venv")
    assert said(programs, "virtiopy", "hello", folder=tmp_path).count("Hello, World!") > 0
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    arguments = ("run", "--guest", "blk", "--disk", "disk.img")
    assert "not ok" not in said(programs, "virtiopy", *arguments, folder=tmp_path)


def test_without_a_compiler_the_build_ends_in_a_sentence(sources: Path, tmp_path: Path) -> None:
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run(
        [*command, str(sources)],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "virtiopy: to build it takes gcc and make, which this host lacks: install" in output
    assert "Traceback" not in output
