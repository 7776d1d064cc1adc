"""The suite, put to many backends in many versions, on as many machines as there are."""
