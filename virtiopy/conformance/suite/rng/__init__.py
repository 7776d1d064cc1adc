"""What the specification asks of entropy devices."""
