"""What a driver says of a virtqueue before it is ready."""

from dataclasses import dataclass

from virtiopy.virtqueue.queue import QueueAreas


@dataclass(slots=True)
class QueueConfig:
    """The size of a virtqueue and the guest physical addresses of its three areas (2.6)."""

    size: int
    ready: bool = False
    descriptor_area: int = 0
    driver_area: int = 0
    device_area: int = 0

    @property
    def areas(self) -> QueueAreas:
        """The three areas together."""
        return QueueAreas(self.descriptor_area, self.driver_area, self.device_area)
