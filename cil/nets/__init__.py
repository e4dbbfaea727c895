"""Backbones and heads. A backbone maps images (B, C, H, W) to features (B, D) and says D in ``num_features``."""
