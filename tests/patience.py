"""How long a test waits for what has to come, on a machine that may have much else to do."""

#: Seconds. It passes only where something is broken, so a short one would save nothing.
PATIENCE = 300.0
