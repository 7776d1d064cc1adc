"""The host's side of a device: disk images."""
