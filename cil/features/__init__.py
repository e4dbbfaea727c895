"""Features of frozen backbones, computed once and kept for all runs. No result depends on them."""
