"""What is carried: exemplars, and the bytes of everything."""
