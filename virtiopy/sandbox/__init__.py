"""What a process of virtiopy's may still do once it is set up."""
