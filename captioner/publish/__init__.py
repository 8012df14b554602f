"""Publishing: an exported folder to the live version of a running server, and back."""
