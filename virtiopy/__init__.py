"""virtiopy: a workbench for virtio devices."""

__version__ = "0.1.0"
