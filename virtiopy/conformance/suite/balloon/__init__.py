"""What the specification asks of traditional memory balloon devices."""
