"""Commands to a running VM, over a Unix socket: the server and its client."""
