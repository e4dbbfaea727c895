"""Lower and upper bounds, and plain replay: what every method is held against."""
