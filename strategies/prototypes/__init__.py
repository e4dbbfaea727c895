"""Methods that describe classes by statistics of features on a frozen backbone; not those that solve for weights."""
