"""What the specification asks of block devices."""
