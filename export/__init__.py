"""A model → a folder that can be published → the live version of the Triton model repository, and back."""

KEEP, KEEP_LOADED = 4, 2  # versions on disk; the live one and the one before always
