"""How good a run was: accuracy, metrics, reports."""
