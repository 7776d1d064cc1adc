"""What devices have to do, played by the suite, to hold against what they did."""
