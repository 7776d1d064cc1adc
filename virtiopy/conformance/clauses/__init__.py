"""The specification's normative statements to a device, and what the suite says of each."""
