"""The tests. `pytest --pyargs virtiopy.conformance --virtio-target=...` collects them."""
