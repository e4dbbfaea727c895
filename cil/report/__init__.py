"""What one run writes for people and programs; not what it measures."""
