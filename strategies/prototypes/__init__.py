"""Methods that describe classes by statistics of their features on a frozen backbone."""
