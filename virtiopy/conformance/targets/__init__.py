"""What is put to the test: a device in process, a class of the user's, or a backend."""
