"""Who else may work the rings."""
