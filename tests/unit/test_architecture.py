import ast
import graphlib
import re
from pathlib import Path

import pytest

import virtiopy

PACKAGE = Path(virtiopy.__file__).parent

Imports = dict[str, set[str]]


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> set[str]:
    # Every import anywhere in the file, whatever condition or function it is in.
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names.add(node.module or "")
            # `from virtiopy.boot import pvh` imports a module, too.
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


IMPORTS: Imports = {_module_name(path): _imported(path) for path in PACKAGE.rglob("*.py")}


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _of_ours(package: str) -> list[tuple[str, str]]:
    # (module in the package, module or name of virtiopy that it imports)
    return [
        (module, name)
        for module, names in sorted(IMPORTS.items())
        if _inside(module, f"virtiopy.{package}")
        for name in sorted(names)
        if name.startswith("virtiopy.")
    ]


# The arrows of the design: who may import what of virtiopy, besides its own package.
LOW = ["_native", "cache", "closing", "complaints", "errors", "eventfds", "files", "sockets"]
#: What a device is and which there are; not one of them.
DEVICES = ["devices.base", "devices.entry", "devices.registry"]
MAY_IMPORT = {
    "_native": ["errors"],
    "cache": [],
    "closing": [],
    "records": [],
    "complaints": [],
    "eventfds": ["_native"],
    "errors": [],
    "files": ["errors"],
    "eventloop": ["closing"],
    "sockets": ["closing", "errors"],
    "spec": [],
    # What it allows to be read is found from the package's own place.
    "sandbox": ["__file__", *LOW],
    "guard": ["_native", "closing", "errors"],
    "memory": [*LOW, "guard"],
    "cpu": [*LOW, "memory", "records"],
    "control.client": ["errors"],
    "vm.bus": ["errors"],
    "virtqueue": [*LOW, "memory", "spec"],
    "devices": [*LOW, "eventloop", "memory", "spec", "virtqueue"],
    "transport": [
        *LOW,
        "eventloop",
        "memory",
        "spec",
        "virtqueue",
        "devices.base",
        "devices.delegation",
        "devices.gate",
    ],
    "host": [
        *LOW,
        "eventloop",
        "memory",
        "sandbox",
        "spec",
        "virtqueue",
        "devices.ninep",
        "devices.streams",
        "devices.vsock.features",
        "devices.vsock.sockets",
    ],
    "accel.kvm": [*LOW, "memory", "cpu"],
    "accel.tcg": [*LOW, "memory", "cpu", "eventloop"],
    "accel": [*LOW, "memory", "cpu", "eventloop"],
    # A backend leads a device's lifecycle, as registers do; it knows no registers.
    "vhost": [
        *LOW,
        "eventloop",
        "memory",
        "spec",
        "virtqueue",
        "devices.base",
        "devices.blk",
        "devices.delegation",
        "devices.gate",
        "devices.net.features",
        "devices.net.backing",
        # The tag, and the feature bit of it.
        "devices.ninep",
        "devices.scsi.features",
        "devices.vsock.delegation",
        # The event queue, which is worked on this side of a backend.
        "devices.vsock.events",
        "devices.vsock.features",
        "guard",
        # How binding a sentence is, of the protocol's too.
        "statements.terms",
        "transport.interrupts",
        "transport.lifecycle",
        "transport.observer",
    ],
    "boot": [*LOW, "memory", "cpu", "accel.base"],
    "linux": [*LOW, "boot"],
    "metrics": ["vhost.worker"],
    "vm": [
        *LOW,
        "accel.base",
        "boot",
        "cpu",
        "devices.base",
        "devices.delegation",
        "devices.streams",
        "eventloop",
        "memory",
        "metrics",
        "spec",
        "transport",
        "virtqueue",
        "vhost.kernel.workers",
        "worker.native",
    ],
    # Rings worked by a native thread: no transport, and of devices only what they say of their
    # backing.
    "worker": [
        *LOW,
        "memory",
        "virtqueue",
        "devices.delegation",
        "devices.diskbacking",
        "devices.net.backing",
        # What frames are subject to.
        "devices.net.control",
        "devices.net.features",
        "devices.net.header",
        "devices.net.path",
    ],
    # The generic commands ask no device's type.
    "control": [*LOW, *DEVICES, "eventloop", "memory", "sizes", "spec"],
    "statements": ["errors", "spec"],
    "sizes": ["errors"],
    "exits": [
        *LOW,
        "__version__",
        "accel",
        "boot",
        # Frames for a guest to receive are addressed as its device is.
        "devices.net.control",
        *DEVICES,
        "host",
        "memory",
        "metrics",
        "vm",
    ],
    "check": [
        *LOW,
        "__version__",
        # Where a proxy has both sides judged: the statements to devices, and what passes.
        "conformance.clauses",
        "vhost.user.memory",
        "vhost.user.messages",
        "vhost.user.passing",
        "vhost.user.seenqueue",
        "vhost.user.statements",
        "devices.blk",
        # What is said in SCSI's events and in packets of sockets, and a socket device's events.
        "devices.scsi.features",
        "devices.vsock",
        *DEVICES,
        "memory",
        "spec",
        "statements",
        "transport",
        "virtqueue",
    ],
    # Words and events; of vhost-user it knows what a message is.
    "trace": [*LOW, "spec", "transport", "vhost.user.messages", "virtqueue"],
    "conformance": [
        *LOW,
        "__version__",
        "devices",
        "eventloop",
        "host",
        "memory",
        "spec",
        "statements",
        "trace",
        "transport",
        "vhost",
        "virtqueue",
    ],
    # The command, for python -m virtiopy.
    "__main__": ["cli"],
    "cli": [
        *LOW,
        "__version__",
        "accel",
        "boot",
        "check",
        "conformance",
        "control",
        "cpu",
        "devices",
        "eventloop",
        "exits",
        "host",
        "linux",
        "memory",
        "metrics",
        "sandbox",
        "sizes",
        "trace",
        "transport",
        "vhost",
        "virtqueue",
        "vm",
        "worker",
    ],
}


def test_every_package_says_what_it_may_import() -> None:
    packages = {module.split(".")[1] for module in IMPORTS if "." in module}
    assert packages - set(MAY_IMPORT) == set()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    allowed = [package, *MAY_IMPORT[package]]
    astray = [
        f"{module} imports {name}"
        for module, name in _of_ours(package)
        if not any(_inside(name, f"virtiopy.{below}") for below in allowed)
        and name not in {f"virtiopy.{below.split('.')[0]}" for below in allowed}
    ]
    assert astray == []


# What the design says in so many words, of packages that may grow other imports.
MUST_NOT_IMPORT = {
    "exits": ["cli", "accel.kvm", "virtqueue"],
    "devices": ["transport", "vhost", "accel", "host", "vm", "cli"],
    "transport": ["devices.blk", "devices.net", "accel", "host", "vm", "cli"],
    "vhost": ["vm", "cli", "accel"],
    "host": ["devices.base", "transport", "accel", "vm", "cli"],
    "accel": ["transport", "devices", "vm", "cli"],
    "eventloop": ["devices", "transport", "accel", "vm", "cli"],
    "vm": ["cli", "control", "conformance", "exits"],
    "control": ["cli", "conformance", "exits"],
    "conformance": ["cli", "accel"],
}


@pytest.mark.parametrize(
    ("package", "above"),
    [(package, above) for package, names in MUST_NOT_IMPORT.items() for above in names],
)
def test_no_arrow_points_up(package: str, above: str) -> None:
    astray = [
        f"{module} imports {name}"
        for module, name in _of_ours(package)
        if _inside(name, f"virtiopy.{above}")
    ]
    assert astray == []


def test_no_module_imports_itself_in_a_circle() -> None:
    # Of `from package import name` only the module counts, unless the name is one.
    graph = {
        module: {name for name in names if name in IMPORTS and name not in {module, "virtiopy"}}
        for module, names in IMPORTS.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("virtiopy.memory") < order.index("virtiopy.virtqueue.split")


def _importers(library: str) -> set[str]:
    return {
        module for module, names in IMPORTS.items() if any(_inside(name, library) for name in names)
    }


# GPL-2.0, and an extra: whoever does without it must not meet it.
def test_only_one_file_knows_of_unicorn() -> None:
    assert _importers("unicorn") == {"virtiopy.accel.tcg.cpu"}


@pytest.mark.parametrize("library", ["click", "rich"])
def test_only_the_command_line_knows_of(library: str) -> None:
    assert {name for name in _importers(library) if not _inside(name, "virtiopy.cli")} == set()


# Whoever tests belongs to the suite, and nothing else of the package may need a test tool.
@pytest.mark.parametrize("library", ["pytest", "hypothesis", "tap"])
def test_only_the_suite_and_the_command_line_know_of(library: str) -> None:
    # And to the tests of drivers, by their authors.
    theirs = ("virtiopy.conformance", "virtiopy.cli", "virtiopy.check.pytest")
    others = {name for name in _importers(library) if not any(_inside(name, own) for own in theirs)}
    assert others == set()


def test_the_library_imports_no_test_of_the_suite() -> None:
    suite = "virtiopy.conformance.suite"
    assert {name for name in _importers(suite) if not _inside(name, suite)} == set()


def test_struct_layouts_are_declared_in_one_place() -> None:
    # docs/style.md: no struct format strings over the code; page tables in x86.py are arrays.
    assert _importers("struct") <= {"virtiopy.cpu.x86"}
    assert _importers("ctypes") == set()
    assert _importers("cffi") <= {"virtiopy._native.build"}


def test_tables_of_pages_scroll_on_a_narrow_screen() -> None:
    # A phone is narrower than most of our tables, which would run off its edge.
    pages = list(PACKAGE.rglob("*.html.j2"))
    assert len(pages) >= 3
    for page in pages:
        text = page.read_text()
        bare = re.findall(r'(?<!<div class="scroll">)(?<!<div class="scroll">\n)<table', text)
        assert bare == [], page
        assert ".scroll { overflow-x: auto; }" in text, page
