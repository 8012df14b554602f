"""The decode engine: continuous batching over the slots of a decoder."""
