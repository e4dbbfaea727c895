"""A strategy of one's own, begun."""
