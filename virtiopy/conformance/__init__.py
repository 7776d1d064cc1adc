"""The conformance suite: any virtio backend, put through the specification's own statements."""
