"""What the specification asks of SCSI host devices."""
