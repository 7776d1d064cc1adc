"""Guest images, and starting them."""
