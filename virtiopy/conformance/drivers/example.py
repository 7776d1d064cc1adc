"""The driver of a device that has none of its own: it sends the one request of its entry."""

from typing import ClassVar

from virtiopy.conformance.drivers.base import DeviceDriver, Request
from virtiopy.devices.entry import DeviceEntry, Example


class ExampleDriver(DeviceDriver):
    """A driver that sends a request, in any framing, and knows the answer."""

    example: ClassVar[Example]

    def good_request(self) -> Request:
        """Return the request."""
        example = self.example

        def check(content: bytes, length: int) -> None:
            assert content[:length] == example.answer, (
                f"{content[:length]!r} is the answer to {example.readable!r}, not "
                f"{example.answer!r}"
            )

        return Request(example.queue, example.readable, len(example.answer), check)


def example_driver(entry: DeviceEntry) -> type[ExampleDriver]:
    """Return the driver of a device that has an example, and no driver of its own."""
    assert entry.example is not None
    shown: Example = entry.example

    class Driver(ExampleDriver):
        device_id = entry.device_id
        name = entry.name
        understood = tuple(entry.device_class.feature_bits or ())
        example = shown
        main_queue = shown.queue

    return Driver
