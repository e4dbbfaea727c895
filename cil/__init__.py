"""Class-incremental learning: one loop, one state, every byte counted."""

from cil import renamed

__version__ = "0.1.0"

renamed.install()
