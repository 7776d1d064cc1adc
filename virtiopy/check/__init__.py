"""Drivers judged: what a driver does is held against the specification's statements to drivers."""
