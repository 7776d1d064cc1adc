"""Both sides of a vhost-user connection judged, by what passes a proxy between them."""
