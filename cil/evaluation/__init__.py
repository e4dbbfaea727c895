"""What is measured: evaluators, and pure functions of what they saw; not how it is told."""
