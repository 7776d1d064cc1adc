"""The test VM: a machine of memory, CPUs and devices, and what answers its exits."""
