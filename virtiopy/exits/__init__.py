"""What each way of doing I/O costs: one guest workload, run in every mode, and compared."""
