"""Methods whose network grows with the tasks, also those that compress it again."""
