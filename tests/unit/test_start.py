"""How the command starts and ends: what is imported late, and what is left out at the end."""

import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiopy.cli.deferred import defer, import_deferred

NAME = "module_of_this_test"
SOURCE = "value = 42\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a module that can be imported."""
    path = tmp_path / f"{NAME}.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop(NAME, None)


def test_a_deferred_module_is_imported_when_it_is_first_used(module: Path) -> None:
    defer(NAME)
    holder = __import__(NAME)
    module.write_text("value = 43\n")
    assert holder.value == 43
    assert sys.modules[NAME].__file__ == str(module)
    assert holder.value == 43


def test_what_is_taken_from_a_deferred_module_is_its_own(module: Path) -> None:
    defer(NAME)
    from module_of_this_test import value  # type: ignore[import-not-found]

    assert value == 42


def test_a_call_follows_the_import_once(module: Path) -> None:
    calls: list[int] = []
    defer(NAME, lambda: calls.append(sys.modules[NAME].value))
    holder = __import__(NAME)
    assert calls == []
    assert (holder.value, holder.value) == (42, 42)
    assert calls == [42]


def test_a_call_follows_at_once_where_the_module_is_imported_already(module: Path) -> None:
    __import__(NAME)
    calls: list[int] = []
    defer(NAME, lambda: calls.append(1))
    assert calls == [1]


def test_a_deferred_module_that_cannot_be_imported_can_be_later(module: Path) -> None:
    module.write_text("raise RuntimeError\n")
    defer(NAME)
    holder = __import__(NAME)
    with pytest.raises(RuntimeError):
        _ = holder.value
    module.write_text("# whole now\nvalue = 42\n")
    assert holder.value == 42


def test_a_deferred_module_has_no_other_attributes(module: Path) -> None:
    defer(NAME)
    with pytest.raises(AttributeError, match=NAME):
        _ = __import__(NAME).other


def test_a_deferred_module_is_imported_once_by_several_threads(module: Path) -> None:
    calls: list[int] = []
    defer(NAME, lambda: calls.append(1))
    holder = __import__(NAME)
    barrier = threading.Barrier(8)
    values: list[int] = []

    def use() -> None:
        barrier.wait()
        values.append(holder.value)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (values, calls) == ([42] * 8, [1])


def test_all_deferred_modules_can_be_imported_at_once(module: Path) -> None:
    defer(NAME)
    import_deferred()
    assert sys.modules[NAME].__dict__["value"] == 42


def run(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, after `source`."""
    source += "\nfrom virtiopy.cli.start import main\nmain()\nprint('after it')"
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


#: What takes milliseconds to import, and is not wanted for the smallest guest.
SLOW = {
    *("ast", "dataclasses", "datetime", "dis", "gettext", "inspect", "locale", "logging"),
    *("pathlib", "platform", "signal", "traceback", "urllib.parse", "uuid", "elftools"),
}


def test_the_smallest_guest_imports_nothing_that_it_does_not_use() -> None:
    # The first run keeps what pyelftools says of the image.
    run("", "hello", "--mode", "long")
    # What is deferred has no spec.
    told = (
        "import atexit, sys\n"
        "def tell():\n"
        "    print(*(name for name, module in sys.modules.items()"
        " if getattr(module, '__spec__', None)), sep='\\n')\n"
        "atexit.register(tell)"
    )
    done = run(told, "hello", "--mode", "long")
    assert done.returncode == 0
    greeting, *modules = done.stdout.splitlines()
    assert greeting.startswith("long: Hello, World! (exits: ")
    assert "click" in modules
    assert not SLOW & set(modules)


def in_command(source: str) -> str:
    """Return what `source` prints in the process of a command, at its end."""
    indented = "\n".join(f"    {line}" for line in source.splitlines())
    done = run(f"import atexit\ndef act():\n{indented}\natexit.register(act)", "--version")
    assert done.stderr == ""
    return done.stdout.partition("\n")[2]


def test_types_of_click_that_are_imported_late_work() -> None:
    source = (
        "import click, datetime, uuid\n"
        "day, one = click.DateTime(), click.UUID\n"
        "when = day.convert('2026-11-27', None, None)\n"
        "assert type(when) is datetime.datetime and when.day == 27\n"
        "assert day.convert(when, None, None) is when\n"
        "number = one.convert(str(uuid.UUID(int=42)), None, None)\n"
        "assert type(number) is uuid.UUID and number.int == 42\n"
        "assert one.convert(number, None, None) is number\n"
        "print('both')"
    )
    assert in_command(source) == "both\n"


def test_a_class_that_click_has_a_stand_in_for_can_be_inherited_from() -> None:
    source = (
        "from datetime import datetime\n"
        "class Mine(datetime):\n"
        "    pass\n"
        "print(Mine(2026, 11, 27).year, datetime.__mro__[1].__name__)"
    )
    assert in_command(source) == "2026 date\n"


def test_texts_are_in_english_in_any_language() -> None:
    assert (
        in_command("from gettext import ngettext, gettext\nprint(ngettext('a', 'b', 2))") == "b\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status"), [(("--version",), 0), (("hello", "--mode", "no"), 2)]
)
def test_the_status_is_the_command_s(arguments: tuple[str, ...], status: int) -> None:
    assert run("", *arguments).returncode == status


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_status_is_the_same_where_a_shell_closed_a_file(closed: str) -> None:
    words = [sys.executable, "-m", "virtiopy", "--version"]
    assert subprocess.run(f"{shlex.join(words)} {closed}", shell=True, check=False).returncode == 0


def test_what_was_to_be_done_at_the_end_is_done() -> None:
    done = run("import atexit\natexit.register(print, 'at the end')", "--version")
    assert done.stdout.splitlines()[-1] == "at the end"


def test_a_thread_that_is_no_daemon_is_waited_for() -> None:
    source = (
        "import threading\n"
        "wait = threading.Event()\n"
        "def end():\n"
        "    threading.main_thread().join()\n"
        "    print('the thread ended')\n"
        "threading.Thread(target=end).start()"
    )
    assert run(source, "--version").stdout.splitlines()[-1] == "the thread ended"


def test_what_is_logged_is_shown_where_logging_is_imported_late() -> None:
    source = (
        "import atexit\n"
        "def warn():\n"
        "    import logging\n"
        "    logging.getLogger('virtiopy.some').warning('take care')\n"
        "    logging.getLogger('other').info('of no interest')\n"
        "atexit.register(warn)"
    )
    done = run(source, "-v", "--version")
    assert done.stderr == "WARNING virtiopy.some: take care\n"
