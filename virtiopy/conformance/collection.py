"""Which of the suite's tests are collected, and in which order: loaded when asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from virtiopy.conformance.clauses.definitions import COMPLETION, PROTOCOLS, everything
from virtiopy.conformance.drivers import DRIVERS, driver_class_of, driver_of
from virtiopy.conformance.marks import SUITE, suite_files
from virtiopy.conformance.report.results import (
    Subject,
)
from virtiopy.conformance.sessions.base import Session
from virtiopy.conformance.settings import FRONTENDS, RESULTS, TARGET, WALKS
from virtiopy.conformance.targets.target import Target
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId
from virtiopy.statements.terms import Keyword


class Suite(pytest.Collector):
    """The whole suite, for the variable `virtio_target` of a test module."""

    target: Target

    def collect(self) -> Iterator[pytest.Collector]:
        """Collect every file of the suite."""
        for path in suite_files():
            if is_of_another(path, self.target):
                continue
            # Its name is as in its ID, by which a test can be asked for again.
            nodeid = f"{self.nodeid}::{path.stem}"
            yield pytest.Module.from_parent(self, path=path, nodeid=nodeid, name=path.stem)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files about other devices, where it is known what the target is."""
    if TARGET in config.stash and is_of_another(collection_path, config.stash[TARGET]):
        return True
    return None


def is_of_another(path: Path, target: Target) -> bool:
    """Say whether a file is about another device or transport: such a file is not even read."""
    if target.device is None or not path.is_relative_to(SUITE) or path == SUITE:
        return False
    folder = path.relative_to(SUITE).parts[0]
    if folder in {_PROTOCOL, _FRONTENDS}:
        return target.transport != "vhost-user"
    return folder != target.device and folder in DRIVERS


def suite_for(module: pytest.Module, target: object) -> Suite:
    """Return the suite for a module's target."""
    if not isinstance(target, Target):
        raise module.CollectError(
            "virtio_target is what virtiopy.conformance.targets.target.inproc returns, and no "
            f"{type(target).__name__}"
        )
    node = Suite.from_parent(module, name="virtio_target")
    node.target = target
    node.stash[TARGET] = target
    return node


def target_of(node: pytest.Item) -> Target:
    """Return what a test is about."""
    for parent in reversed(node.listchain()):
        if TARGET in parent.stash:
            return parent.stash[TARGET]
    return node.config.stash[TARGET]


def note_subject(config: pytest.Config, target: Target, session: Session) -> None:
    """Note what a target is, as the first session with it shows: reports name what was tested."""
    results = config.stash[RESULTS]
    if results.knows(target.name):
        # To ask the device again costs more than most tests.
        return
    results.note(
        Subject(
            target.name,
            session.device_id,
            driver_of(session).name,
            session.transport,
            session.offered,
        )
    )


def note_backend(config: pytest.Config, target: Target, device_id: DeviceId) -> None:
    """Note what a backend is of which there was no session yet."""
    name = driver_class_of(device_id).name
    config.stash[RESULTS].subjects.setdefault(
        target.name, Subject(target.name, device_id, name, target.transport, 0)
    )


def in_suite(item: pytest.Item) -> bool:
    """Say whether a test is one of the suite's, or a user's own that is written like them."""
    return "virtio_target" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other devices, which ask for the driver of one; order the others.

    What everything else stands on comes first, so that the first failure is the one to look at.
    """
    others = [
        item
        for item in items
        if in_suite(item) and not (_concerns(item) and _is_asked_for(config, item))
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]
    targets: dict[Target, int] = {}
    for item in items:
        if in_suite(item):
            targets.setdefault(target_of(item), len(targets))
    # A user's own tests stay where they are, before those of the suite.
    items.sort(key=lambda item: (targets[target_of(item)], _rank(item)) if in_suite(item) else ())


def _is_asked_for(config: pytest.Config, item: pytest.Item) -> bool:
    """Say whether a test is one that the options ask for, where they ask for some alone."""
    if config.stash[WALKS].replay is not None:
        return "walks" in getattr(item, "fixturenames", ())
    asked_for = config.stash[FRONTENDS]
    return not asked_for or _frontend_of(item) in asked_for


def _frontend_of(item: pytest.Item) -> str | None:
    """Return the frontend of VMMs that a test is about; None where it is about none."""
    call = getattr(item, "callspec", None)
    name = None if call is None else call.params.get("guest")
    return name if isinstance(name, str) and item.path.parent.name == _FRONTENDS else None


#: The files of the suite's tests about every device, in the order in which they are run.
_ORDER = ("test_basic", "test_split", "test_mmio")


def _rank(item: pytest.Item) -> int:
    if not item.path.is_relative_to(SUITE):
        return -1
    if COMPLETION in clauses_of(item) or set(PROTOCOLS) & set(clauses_of(item)):
        return 0
    if item.path.stem in _ORDER:
        return 2 + _ORDER.index(item.path.stem)
    last = 2 + len(_ORDER)
    if item.path.stem == "test_walks":
        return last + 3
    if item.path.parent.name == _FRONTENDS:
        # What they stand on is looked at before.
        return last + 2
    if item.path.parent.name == "hostile":
        return last + 1
    return 1 if is_basis(item) else last


def is_basis(item: pytest.Item) -> bool:
    """Say whether a test is about what tests of other statements stand on.

    Such tests come first, and are not hurried: what they find is not held against others.
    """
    if _is_protocols(item):
        return False
    known = everything()
    clauses = [known[clause] for clause in clauses_of(item) if clause in known]
    return any(clause.keyword is Keyword.DEFINITION or clause.bears for clause in clauses)


#: The folder of the tests about the vhost-user protocol.
_PROTOCOL = "vhostuser"

#: The folder of the sessions of VMMs' frontends.
_FRONTENDS = "frontends"


def _is_protocols(item: pytest.Item) -> bool:
    return item.path.is_relative_to(SUITE) and item.path.parent.name == _PROTOCOL


def _concerns(item: pytest.Item) -> bool:
    only_there = _is_protocols(item) or item.path.parent.name == _FRONTENDS
    if only_there and target_of(item).transport != "vhost-user":
        return False
    asked_for = set(DRIVERS) & set(getattr(item, "fixturenames", ()))
    return not asked_for or asked_for == {target_of(item).device}


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Look whether there is anything to test, before any test says so."""
    if session.config.option.collectonly:
        return
    try:
        for target in {target_of(item) for item in session.items if in_suite(item)}:
            target.check()
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


def clauses_of(item: pytest.Item) -> Sequence[str]:
    """Return the IDs of the statements that a test is about."""
    return [clause for mark in item.iter_markers("clause") for clause in mark.args]
