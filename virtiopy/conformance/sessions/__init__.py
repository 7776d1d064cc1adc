"""Sessions: one driver's life with a device, over registers or over vhost-user."""
