"""Methods that solve a ridge regression on features of a frozen backbone."""
