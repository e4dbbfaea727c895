"""Class-incremental learning: one loop, one state, every byte counted."""

__version__ = "0.1.0"
