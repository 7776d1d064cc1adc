"""What the specification asks of file system devices."""
