"""Virtqueues: the device side, the driver side, their layout."""
