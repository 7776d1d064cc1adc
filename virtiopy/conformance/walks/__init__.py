"""Random walks of a driver: what they are made of, and how a failing one is made short."""
