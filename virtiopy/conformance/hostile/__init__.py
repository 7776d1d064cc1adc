"""What a broken or malicious driver does to a device: acts by name, for tests and walks."""
