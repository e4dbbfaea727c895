"""What is carried between tasks: exemplars, and the bytes of everything; not how it is learned or written."""
