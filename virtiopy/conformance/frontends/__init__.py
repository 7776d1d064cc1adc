"""How the frontends of VMMs speak, as data, and sessions that speak as they do."""
