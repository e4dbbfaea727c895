"""What a run measures and writes: accuracy, metrics, reports."""
