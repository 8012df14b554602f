"""One forward pass of a decoder over the rows of its key/value cache."""
