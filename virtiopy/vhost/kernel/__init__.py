"""The kernel as the worker of a device's rings: /dev/vhost-net, and room for its siblings."""
