"""Methods whose network grows with the tasks, or grows and is compressed again."""
