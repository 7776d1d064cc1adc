"""Rings worked by threads in C, without the interpreter."""
