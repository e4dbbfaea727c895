"""Maths that two or more strategies use, as pure functions and buffers; not what one strategy alone does."""
