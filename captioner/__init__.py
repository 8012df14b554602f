"""Captioner: image captioning on your own server. Nothing heavy is imported here."""

__version__ = "0.1.0"
