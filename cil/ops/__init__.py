"""Maths that two or more strategies use, as pure functions."""
