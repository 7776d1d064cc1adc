"""A vhost-user session in a file: recorded by a proxy, played to another backend."""
