"""What the vhost-user protocol asks of backends."""
