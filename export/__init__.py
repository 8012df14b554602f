"""A model's published files to a version of the Triton model repository: `python -m export MODEL`."""
