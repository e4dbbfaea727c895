"""Backbones, which map images (B, C, H, W) to features (B, D), and heads that grow; not how they learn."""
