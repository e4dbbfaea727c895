"""Runs: begun, planned, compared."""
