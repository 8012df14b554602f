"""From a model's name to a verified folder on this disk."""
