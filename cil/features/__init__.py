"""Features of frozen backbones, computed once and kept for all runs; nothing that could change a result."""
