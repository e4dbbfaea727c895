"""Many finished runs side by side: read, compared at equal memory, checked for fairness; never a run in memory."""
