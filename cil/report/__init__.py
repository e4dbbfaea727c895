"""What one run writes for people and programs. What it measures is in ``cil.evaluation``."""
