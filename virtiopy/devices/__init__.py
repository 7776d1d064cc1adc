"""Virtio devices, one file each."""
