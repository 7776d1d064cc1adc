"""The specification's normative statements to devices and to drivers, read from its sources."""
