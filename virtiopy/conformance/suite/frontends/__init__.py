"""Sessions with a backend as the frontends of VMMs have them."""
