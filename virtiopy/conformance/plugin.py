"""The pytest plugin: options and marks, and the suite where it is asked for.

pytest imports this for everybody who has virtiopy installed, so it imports nothing of it until
the suite is asked for: by an option, or by a variable `virtio_target` of a test module.
"""

from types import ModuleType

import pytest

_OPTIONS = (
    ("target", "TARGET", "inproc:NAME, vhost-user:SOCKET or python:MODULE:FACTORY"),
    ("device", "DEVICE", "what the target is: blk, for one"),
    ("transport", "TRANSPORT", "mmio or vhost-user, for targets of this process"),
    ("spawn", "COMMAND", "starts a vhost-user backend for each test, at the socket {socket}"),
    ("spawn-time", "SECONDS", "how long a backend that was started may take to listen (60)"),
    ("walks", "N", "how many random walks of a driver's there are (25)"),
    ("replay", "FILE", "walk the walk in this file, and run no other test"),
    ("frontend", "NAME", "have sessions as this frontend of VMMs alone, or all of them"),
    ("thorough", "SECONDS", "how long each test with random work goes on"),
    ("patience", "SECONDS", "how long is waited for what has to come (5)"),
    ("jobs", "N", "how many tests run beside one another"),
    ("timeout", "SECONDS", "begin no test after so long, and say what was found"),
)

_MARKS = (
    "clause(*ids): the statements of the specification that the test is about, as 2.7.7.2:1",
    "feature(*names): the test only applies where the device offers these features",
    "unless_feature(*names): the test only applies where the device offers none of these features",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("virtio", "conformance of a virtio device")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--virtio-{name}", metavar=metavar, help=text)
    group.addoption(
        "--virtio-strict",
        action="store_true",
        help="have what a device SHOULD do, and does not, be a failure",
    )
    group.addoption(
        "--virtio-output",
        choices=["text", "github"],
        default="text",
        help="github: have the summary end with annotations for GitHub's runner",
    )
    group.addoption(
        "--virtio-report",
        metavar="FILE",
        action="append",
        default=[],
        help="write what every statement came to, with the evidence: .html, .json or .xml",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks; load the suite where an option names a target."""
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)
    if config.getoption("virtio_target") or config.getoption("virtio_spawn"):
        _load(config)
    elif any(arg.startswith("virtiopy.conformance") for arg in config.args):
        raise pytest.UsageError(
            "Say what to put to the test: --virtio-target=inproc:blk, for one, or "
            "--virtio-spawn='COMMAND {socket}' --virtio-device=blk."
        )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> pytest.Collector | None:
    """Collect the suite for a variable `virtio_target` of a module."""
    if name != "virtio_target" or not isinstance(collector, pytest.Module):
        return None
    suite: pytest.Collector = _load(collector.config).suite_for(collector, obj)
    return suite


def _load(config: pytest.Config) -> ModuleType:
    from virtiopy.conformance import collection, fixtures, jobs, outcomes, settings

    plugins = {
        settings.__name__: settings,
        collection.__name__: collection,
        outcomes.__name__: outcomes,
        fixtures.__name__: fixtures,
        jobs.__name__: jobs,
        fixtures.DRIVER_FIXTURES.__name__: fixtures.DRIVER_FIXTURES,
    }
    for name, plugin in plugins.items():
        if not config.pluginmanager.has_plugin(name):
            config.pluginmanager.register(plugin, name)
    return collection
