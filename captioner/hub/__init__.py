"""A model's name to a checked folder on this disk."""
