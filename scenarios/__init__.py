"""Data sets and how they are cut into tasks. Import a builder from its own file."""
