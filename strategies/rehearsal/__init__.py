"""Methods that keep one network and exemplars; not those whose network grows."""
