"""Bounds, and plain replay: what every method is held against; no method of its own."""
