"""A run that was learned, in use. Nothing here changes what a run measures."""
