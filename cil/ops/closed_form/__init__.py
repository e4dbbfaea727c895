"""Statistics of features and what is computed from them without a gradient; not what a gradient step needs."""
