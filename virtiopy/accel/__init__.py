"""What executes guest code."""
