"""What is counted while a guest runs: exits, and the parts of a run that the guest marks."""
