"""The command `virtiopy`; one file a subcommand."""
