"""An exported folder to the live version of a running server, and back."""

KEEP_LOADED = 2  # versions that Triton holds in memory: the live one and the one before, so that a rollback is instant
KEEP = 4  # versions on disk by default; at least KEEP_LOADED
