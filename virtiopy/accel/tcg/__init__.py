"""Guest code executed by a software CPU (Unicorn), with the interrupt chips it lacks."""
