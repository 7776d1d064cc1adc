"""The tests of network devices (5.1)."""
