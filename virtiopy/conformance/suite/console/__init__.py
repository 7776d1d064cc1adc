"""The tests of console devices (5.3)."""
