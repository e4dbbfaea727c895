"""Methods that solve a ridge regression on features of a frozen backbone; no gradient after the first task."""
