"""The hostile driver: what a broken or malicious one does, and that the device works after it."""
