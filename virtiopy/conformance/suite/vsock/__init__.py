"""What the specification asks of socket devices."""
