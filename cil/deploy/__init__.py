"""A run that was learned, opened again: asked, looked into, exported; nothing that a run itself needs."""
