"""What a run learned, in use."""
