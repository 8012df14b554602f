"""Decoders: one forward pass over the rows of a key/value cache."""
